"""torch.compile, with a sentence where it cannot work."""

import os
import shutil

import torch

from errors import UsageError
from models.language_model import LanguageModel

# A drawn number of tokens is a variable of what is compiled; but for 0 and 1 PyTorch makes graphs of their
# own, one for each pass that may be the first with so few. Beyond this limit a step runs uncompiled.
MOST_GRAPHS = 64


def compile_training(model: LanguageModel, device: torch.device) -> None:
    """From now on `model` trains compiled, in one graph without breaks (with FSDP in several), and evaluates
    as before. Sets the limit of graphs for the whole process.

    Raises UsageError on a CPU without a C++ compiler, which torch.compile needs there.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UsageError(
            "--compile on a CPU needs a C++ compiler (g++ or clang++): install one, or leave it out"
        )
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    model.compute_in_training = torch.compile(LanguageModel.compute)

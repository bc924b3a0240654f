"""torch.compile, with a sentence where it cannot work."""

import os
import shutil

import torch
from torch import nn

from errors import UsageError


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """The compiled form of `model`, sharing its weights: save and evaluate the model itself.

    Raises UsageError on a CPU without a C++ compiler, which torch.compile needs there.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UsageError(
            "--compile on a CPU needs a C++ compiler (g++ or clang++): install one, or leave it out"
        )
    return torch.compile(model)

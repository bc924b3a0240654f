"""`--compile`: torch.compile of a training, by blocks or as a whole step. Evaluation stays eager."""

import logging
import os
import shutil
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from distributed import Precision
from errors import Failure, UsageError
from models.block_graphs import BlockGraphs
from models.language_model import LanguageModel

logger = logging.getLogger(__name__)

# The most graphs of a compiled function. FSDP breaks the graph at each sharded block, and the parts need
# several; beyond the limit a part runs uncompiled.
MAX_GRAPHS = 64


def compile_training(
    model: LanguageModel, mode: str, precision: Precision, required: bool = True, backend: str = "inductor"
) -> None:
    """Compile the model's training forward passes.

    Sets process-wide settings of torch.compile.

    Args:
        mode: `block`: each block's work before and after attention (`models.block_graphs`). `step`: the whole
            forward pass in one graph (several with FSDP).
        required: where blocks cannot be compiled, raise Failure; otherwise warn, and leave the model as it
            is.
        backend: of torch.compile.

    Raises UsageError on a CPU without a C++ compiler, which Inductor needs there.
    """
    compilers = os.environ.get("CXX", "g++"), "clang++"
    on_cpu = precision.device.type == "cpu"
    if backend == "inductor" and on_cpu and not any(map(shutil.which, compilers)):
        raise UsageError(
            f"--compile {mode} on a CPU needs a C++ compiler (g++ or clang++): install one, or give "
            "--compile none"
        )
    # For DDP, Dynamo would cut the graph at every 25 MiB of weights, counting shared ones at each use. What
    # that gains, reduction during the backward pass, is little where blocks repeat.
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    if mode == "step":
        _compile_step(model, backend)
        return
    graphs = BlockGraphs(model, backend)
    try:
        with precision.autocast():
            graphs.compile()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the compiler, of compilers that it starts, or of the first launch
        if required:
            raise _failure(mode, error) from error
        logger.warning(f"blocks could not be compiled ({_reason(error)}); training continues without")
        return
    graphs.install()


def _compile_step(model: LanguageModel, backend: str) -> None:
    # Numbers of routed tokens vary from the first batch on; None would take its own for constants.
    dynamic = True if model.routed else None
    compiled = torch.compile(LanguageModel.compute, backend=backend, dynamic=dynamic)

    def compute(
        model: LanguageModel, idx: Tensor, targets: Tensor, routing: Any, *rest: Any
    ) -> dict[str, Any]:
        if routing is not None and not routing.compilable:
            return LanguageModel.compute(model, idx, targets, routing, *rest)
        for ids in (idx, targets):
            torch._dynamo.mark_static(ids)
        try:
            return compiled(model, idx, targets, routing, *rest)
        except TorchDynamoException as error:
            raise _failure("step", error) from error

    model.compute_in_training = compute


def _failure(mode: str, error: Exception) -> Failure:
    return Failure(
        f"--compile {mode}: torch.compile failed ({_reason(error)}); give --compile none to train without"
    )


def _reason(error: Exception) -> str:
    """Like `RuntimeError: Cannot find a working triton installation`."""
    error = getattr(error, "inner_exception", error)  # around which the compiler adds its own story
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

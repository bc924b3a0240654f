"""The device of a process, the number format of its matrix products (autocast), and torch.compile.

Weights are float32.
"""

import ctypes
import os
import platform
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distributed.processes import local_rank
from errors import UsageError
from hardware import cpu_multiplies_bfloat16

# The most graphs of a compiled function. FSDP breaks the graph at each sharded block, and the parts need
# several; beyond the limit a part runs uncompiled.
MAX_GRAPHS = 64

# Of torch's allocator; the second is the older name, which torch still reads.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

# The sizes of cuBLAS' workspace with which it is deterministic.
CUBLAS_WORKSPACES = (":4096:8", ":16:8")

# mallopt parameters of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def choose_device(name: str, deterministic: bool = True, tf32: bool = True) -> torch.device:
    """The device that `--device` names. A GPU is made ready: this sets torch's options for the whole process.

    Args:
        name: `auto` (CUDA if there is a GPU, else the CPU), `cpu`, `cuda` or `cuda:N`. Under torchrun each
            process takes the GPU of its local rank.
        deterministic: on a GPU, only kernels that sum in a fixed order; torch raises where there is none.
            CPU kernels are deterministic for a given number of threads.
        tf32: on a GPU, multiply float32 numbers in TF32.

    Raises UsageError when this machine has no such GPU, or the environment excludes determinism.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cpu":
        keep_heap()
    if device.type == "cuda" and (device.index is None or "LOCAL_RANK" in os.environ):
        device = torch.device("cuda", local_rank())
    if device.type == "cuda":
        if (device.index or 0) >= count:
            found = f"{count} GPU{'s' if count != 1 else ''}"
            raise UsageError(
                f"--device {device}: this machine has {found} that torch can use; try --device auto"
            )
        _prepare_cuda(device, deterministic, tf32)
    return device


def _prepare_cuda(device: torch.device, deterministic: bool, tf32: bool) -> None:
    """As `choose_device`; before this process allocates on the device."""
    # Routed batches change size from step to step, which leaves gaps between segments of fixed size: 1.8 GB
    # of an L4's 24 GB.
    if not any(name in os.environ for name in ALLOCATOR_SETTINGS):
        os.environ[ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"
    torch.cuda.set_device(device)
    # TF32 is about twice as fast as float32 on Ampere and later.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # cuDNN's attention plans each new shape anew, for up to a second, and torch prefers it on H100. Routed
    # models meet a new shape in most micro-batches, and generation at every token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES[0])
        if workspace not in CUBLAS_WORKSPACES:
            raise UsageError(
                f"the environment has CUBLAS_WORKSPACE_CONFIG={workspace!r}, with which cuBLAS is not "
                "deterministic: unset it, or give --deterministic false"
            )
    # With warn_only, attention would keep its non-deterministic backward pass.
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for debugging only, and slow


@dataclass(frozen=True)
class Precision:
    """The number format of a run's matrix products. reason: its name, and why another was not chosen."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> AbstractContextManager:
        """The context of forward passes. It may be entered many times."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for float16, whose small gradients would underflow; disabled in other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_precision(name: str, device: torch.device) -> Precision:
    """The format that `--dtype` asks for, as far as `device` computes in it.

    On CPUs with AMX or AVX512-BF16, bfloat16 is about five times as fast as float32. Other CPUs emulate it,
    slower than float32, and get float32 instead. Older GPUs than Ampere also emulate it, and keep it.

    Args:
        name: `torch.bfloat16`, `torch.float16` or `torch.float32`.

    Raises UsageError for float16 on a CPU.
    """
    dtype = getattr(torch, name.removeprefix("torch."))
    if device.type == "cpu" and dtype == torch.float16:
        raise UsageError("--dtype torch.float16 needs a GPU; on a CPU choose torch.bfloat16 or torch.float32")
    if device.type == "cpu" and dtype == torch.bfloat16 and not cpu_multiplies_bfloat16():
        return Precision(device, torch.float32, "float32: this processor does not multiply bfloat16")
    reason = str(dtype).removeprefix("torch.")
    if device.type == "cuda" and dtype == torch.float32 and _multiplies_in_tf32():
        reason = "float32 (TF32 products)"
    if device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        reason = "bfloat16, which this GPU only emulates: --dtype torch.float16 is faster"
    return Precision(device, dtype, reason)


def _multiplies_in_tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest" and torch.cuda.is_tf32_supported()


def compile_training(model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compile the model's training forward with torch.compile, in one graph (several with FSDP).

    Evaluation stays eager. Sets the process-wide limit of graphs.

    Args:
        backend: of torch.compile.

    Raises UsageError on a CPU without a C++ compiler, which Inductor needs there.
    """
    compilers = os.environ.get("CXX", "g++"), "clang++"
    if backend == "inductor" and device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UsageError(
            "--compile on a CPU needs a C++ compiler (g++ or clang++): install one, or leave it out"
        )
    # For DDP, Dynamo would cut the graph at every 25 MiB of weights, counting shared ones at each use. What
    # that gains, reduction during the backward pass, is little where blocks repeat.
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    # Numbers of routed tokens vary from the first batch on; None would take its own for constants.
    compiled = torch.compile(type(model).compute, backend=backend, dynamic=True if model.routed else None)

    def compute(model: nn.Module, idx: Tensor, targets: Tensor, *rest: Any) -> dict[str, Any]:
        for ids in (idx, targets):
            torch._dynamo.mark_static(ids)
        return compiled(model, idx, targets, *rest)

    model.compute_in_training = compute


def keep_heap() -> bool:
    """Keep freed memory in the process for the next tensor of its size (glibc only); whether that worked.

    glibc maps each block of 32 MiB or more anew and unmaps it when it is freed, and the kernel clears its
    pages on first touch: a tenth of a training step on a CPU. In exchange the process stays at its peak size.
    MALLOC_* and GLIBC_TUNABLES in the environment take precedence.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))

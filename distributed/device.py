"""The device of a process, the number format of its matrix products (autocast), what is compiled.

Weights are float32.
"""

import ctypes
import importlib.util
import logging
import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from distributed.processes import environment_number, local_rank
from errors import UsageError
from hardware import cpu_multiplies_bfloat16

# Compiling blocks takes about a minute, and saves from 20 ms (H100) to 200 ms (L4) of a micro-batch at the
# paper's size: estimates by launches and bytes.
COMPILING_PAYS = 3_000

logger = logging.getLogger(__name__)

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

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
        if not count and NVIDIA_DRIVER.exists():
            logger.warning(f"this machine has an NVIDIA driver, but {_why_no_gpu()}: this runs on the CPU")
    device = torch.device(name)
    if device.type == "cpu":
        keep_heap()
    if device.type == "cuda" and (device.index is None or "LOCAL_RANK" in os.environ):
        device = torch.device("cuda", local_rank())
    if device.type == "cuda":
        if (device.index or 0) >= count:
            raise UsageError(_no_such_gpu(device, count))
        _prepare_cuda(device, deterministic, tf32)
    return device


def _no_such_gpu(device: torch.device, count: int) -> str:
    """The error of a GPU that is not among `count`."""
    found = f"{count} GPU{'s' if count != 1 else ''}"
    if count and "LOCAL_RANK" in os.environ:
        return (
            f"each process takes a GPU of its own, and this machine has {found} that torch can use for "
            f"{environment_number('LOCAL_WORLD_SIZE', 1)} processes: give torchrun --nproc_per_node {count}"
        )
    reason = "" if count else f" ({_why_no_gpu()})"
    return f"--device {device}: this machine has {found} that torch can use{reason}; try --device auto"


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} leaves torch no GPU"
    return "torch finds no GPU that works with it"


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


def choose_compile(asked: str, device: torch.device, micro_batches: int) -> tuple[str, str]:
    """What of a training is compiled (block, step or none), by --compile, and a sentence about it.

    A function of the whole run, not of what is left of it: a resumed run computes the same.

    Args:
        micro_batches: of the whole run, on all ranks.
    """
    if asked != "auto":
        return asked, "" if asked == "none" else f"--compile {asked}: compiled before the first step"
    if device.type != "cuda":
        return "none", ""
    if micro_batches < COMPILING_PAYS:
        few = f"{micro_batches:,} micro-batches; from {COMPILING_PAYS:,} on it pays"
        return "none", f"not compiled: the run has {few}"
    if importlib.util.find_spec("triton") is None:
        return "none", "not compiled: that needs the package triton"
    return "block", "blocks are compiled before the first step"


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

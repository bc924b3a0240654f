"""Which device a process works on."""

import os

import torch

from distributed.heap import keep_heap
from distributed.processes import local_rank
from errors import UsageError


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one, else the CPU), `cpu`, `cuda` or `cuda:N` -> the device.

    Of several processes on a machine, each takes the GPU of its place there. Raises UsageError when that GPU
    is not there.
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
            there = f"{count} GPU{'s' if count != 1 else ''}"
            raise UsageError(
                f"--device {device}: this machine has {there} that torch can use; try --device auto"
            )
        torch.set_float32_matmul_precision(
            "high"
        )  # TF32: about twice the speed of float32 on Ampere and later
        torch.cuda.set_device(device)
        # Resuming bit for bit needs kernels that add in one order. Where there is none, torch warns.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # for debugging only, and slow
    return device

"""Processes, devices and number formats of a run, and training on several ranks (DDP, FSDP)."""

from distributed.device import Precision, choose_compile, choose_device, choose_precision
from distributed.processes import Processes, require_single_process

__all__ = [
    "Precision", "Processes", "choose_compile", "choose_device", "choose_precision", "require_single_process",
]  # fmt: skip

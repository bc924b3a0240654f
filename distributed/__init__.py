"""What a run runs on: its processes, its device and its arithmetic."""

from distributed.device import choose_device
from distributed.precision import Precision, choose_precision
from distributed.processes import Processes, require_single_process

__all__ = ["Precision", "Processes", "choose_device", "choose_precision", "require_single_process"]

"""What a run runs on: its processes, its device and its arithmetic."""

from distributed.device import choose_device, require_single_process
from distributed.precision import Precision, choose_precision

__all__ = ["Precision", "choose_device", "choose_precision", "require_single_process"]

"""In which number format the matrix products are computed. Weights are float32 throughout."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from errors import UsageError
from hardware import cpu_multiplies_bfloat16


@dataclass(frozen=True)
class Precision:
    """The format of a run and why it was chosen."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> AbstractContextManager:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that small gradients survive float16; elsewhere it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_precision(name: str, device: torch.device) -> Precision:
    """`torch.bfloat16`, `torch.float16` or `torch.float32` -> what `device` computes in.

    On a CPU bfloat16 is used where the processor multiplies it natively (about five times as fast as float32
    there); on another CPU it would be emulated, slower than float32, and float32 is used instead.
    Raises UsageError for float16 on a CPU.
    """
    dtype = getattr(torch, name.removeprefix("torch."))
    if device.type == "cpu" and dtype == torch.float16:
        raise UsageError("--dtype torch.float16 needs a GPU; on a CPU choose torch.bfloat16 or torch.float32")
    if device.type == "cpu" and dtype == torch.bfloat16 and not cpu_multiplies_bfloat16():
        return Precision(device, torch.float32, "float32: this processor does not multiply bfloat16")
    return Precision(device, dtype, str(dtype).removeprefix("torch."))

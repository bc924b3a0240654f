"""How several processes train one network: a copy in each (DDP), or a part of it (`distributed.sharded`)."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.processes import Processes
from errors import UsageError


class Alone:
    """One process: nothing to share."""

    name, sharded = "alone", False

    def __init__(self, processes: Processes | None = None) -> None:
        self.processes = Processes() if processes is None else processes

    def place(self, model: nn.Module) -> nn.Module:
        """The network as the optimiser is to see it: called once its weights are those to go on with."""
        return model

    def forward_of(self, model: nn.Module) -> nn.Module:
        """What runs the batches of training."""
        return model

    def accumulating(self, forward: nn.Module, last: bool) -> AbstractContextManager:
        """Around a micro-batch. last: of the step; only then do the processes add up their gradients."""
        return contextlib.nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """The value of a tensor of which this process may hold a part."""
        return tensor

    def localise(self, full: Tensor, like: Tensor) -> Tensor:
        """This process' part of a whole tensor, in the layout of `like`."""
        return full


class Replicated(Alone):
    """DDP. Every weight has a gradient in every forward pass, so none has to be looked for."""

    name = "DDP"

    def __init__(self, processes: Processes, device: torch.device) -> None:
        super().__init__(processes)
        self._device = device

    def forward_of(self, model: nn.Module) -> nn.Module:
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def accumulating(self, forward: nn.Module, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext() if last else forward.no_sync()


def choose_parallel(
    backend: str | None, processes: Processes, device: torch.device, acc_steps: int, **flags: Any
) -> Alone:
    """--distributed_backend -> how to train; None means DDP where there are several processes.

    acc_steps: micro-batches of a process in a step. flags: others that matter, by their names.
    Raises UsageError for a backend that this device or these flags cannot have.
    """
    if backend == "nccl" and device.type != "cuda":
        raise UsageError(
            "--distributed_backend nccl needs GPUs, and this runs on a CPU; choose gloo, fsdp or None"
        )
    if processes.size == 1:
        return Alone(processes)
    if backend != "fsdp":
        return Replicated(processes, device)
    if flags["opt"] == "adafactor" or flags["dtype"] == "torch.float16":
        raise UsageError(
            "--distributed_backend fsdp goes with --opt adamw or sgd, and not with --dtype torch.float16"
        )
    from distributed.sharded import Sharded

    return Sharded(processes, device, acc_steps)

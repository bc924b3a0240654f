"""How ranks train one model together: a single process, DDP (a copy on each rank) or FSDP (shards of it)."""

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.processes import Processes
from errors import UsageError


@dataclass(frozen=True)
class RankSlice:
    """The part of a step's acc_steps micro-batches of batch_size sequences that one rank computes.

    Micro-batches first_micro_batch .. first_micro_batch + acc_steps - 1 of the step, and the sequences `rows`
    of each.
    """

    first_micro_batch: int
    acc_steps: int
    rows: slice

    @property
    def micro_batches(self) -> range:
        """The numbers of its micro-batches in the step."""
        return range(self.first_micro_batch, self.first_micro_batch + self.acc_steps)

    @property
    def part(self) -> int:
        """Which part of each micro-batch this is, 0 for a whole one."""
        return self.rows.start // (self.rows.stop - self.rows.start)

    @classmethod
    def of(cls, batch_size: int, acc_steps: int, rank: int, size: int) -> "RankSlice":
        """The slice of one of `size` ranks.

        Accumulation steps are split across ranks first, acc_steps / gcd(acc_steps, size) for each; remaining
        ranks split each micro-batch. So a step sums over the same sequences for any number of ranks.

        Raises UsageError when batch_size * acc_steps sequences cannot be split evenly.
        """
        groups = math.gcd(acc_steps, size)
        ranks_per_group = size // groups
        if batch_size % ranks_per_group:
            raise UsageError(
                f"--batch_size {batch_size} x --acc_steps {acc_steps} cannot be split across {size} "
                f"processes: make acc_steps a multiple of {size}, or batch_size one of {ranks_per_group}"
            )
        group, place = divmod(rank, ranks_per_group)
        rows = batch_size // ranks_per_group
        steps = acc_steps // groups
        return cls(group * steps, steps, slice(place * rows, (place + 1) * rows))


class SingleProcess:
    """Training in one process, and the interface of the others."""

    name, sharded = "single process", False

    def __init__(self, processes: Processes | None = None) -> None:
        self.processes = Processes() if processes is None else processes

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as the optimiser sees it. Called once, with the initial weights in place."""
        return model

    def training_forward(self, model: nn.Module) -> nn.Module:
        """The module that runs training batches."""
        return model

    def accumulate(self, forward: nn.Module, last: bool) -> AbstractContextManager:
        """The context of a micro-batch; ranks reduce gradients only in the last one of a step."""
        return contextlib.nullcontext()

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """The unsharded tensor."""
        return tensor

    def shard_like(self, full: Tensor, like: Tensor) -> Tensor:
        """This rank's shard of a full tensor, in the layout of `like`."""
        return full


class DDP(SingleProcess):
    """A copy of the model on each rank. Every weight gets a gradient in every forward pass, so the search for
    unused ones stays off."""

    name = "DDP"

    def __init__(self, processes: Processes, device: torch.device) -> None:
        super().__init__(processes)
        self._device = device

    def training_forward(self, model: nn.Module) -> nn.Module:
        devices = [self._device] if self._device.type == "cuda" else None
        forward = DistributedDataParallel(_Trained(model), device_ids=devices, gradient_as_bucket_view=True)
        # DDP arranges its buckets anew after the first backward pass, in the order of its gradients, and how
        # more than two ranks are added up depends on a number's place in a bucket. A run that resumes would
        # go on with other last bits, if its first step were that pass.
        forward().backward()
        model.zero_grad(set_to_none=True)
        return forward

    def accumulate(self, forward: nn.Module, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext() if last else forward.no_sync()


class _Trained(nn.Module):
    """A model; called without arguments, a number with a gradient for every weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        if not inputs:
            return torch.stack([weight.sum() for weight in self.parameters()]).sum()
        return self._model(*inputs, **options)


class FSDP(SingleProcess):
    """FSDP2 (`fully_shard`): float32 shards of weights and optimiser states.

    Blocks that run once are gathered one by one. The repeated middle blocks are gathered with the rest of the
    model, once for all passes: on their own they would be gathered and reduced in every pass, and ranks whose
    tokens stop at different passes would do so a different number of times, which hangs.
    """

    name, sharded = "FSDP", True

    def __init__(self, processes: Processes, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # takes a second to import

        super().__init__(processes)
        self._mesh = init_device_mesh(device.type, (processes.size,))
        self._on_cuda, self._compiled = device.type == "cuda", False

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks_that_run_once():
            fully_shard(block, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)
        return model

    def accumulate(self, forward: nn.Module, last: bool) -> AbstractContextManager:
        forward.set_requires_gradient_sync(last)
        # A full queue of kernels that wait for another rank's weights blocks the launch of the next one. Not
        # in the first step, which may be compiled for longer than ranks wait for one another.
        waits = self._on_cuda and self._compiled
        self._compiled |= last
        return self.processes.waiting() if waits else contextlib.nullcontext()

    def full_tensor(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def shard_like(self, full: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return full
        full = full.to(like.device)  # every rank has it: nothing is sent
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def choose_parallel(
    backend: str | None, processes: Processes, device: torch.device, **flags: Any
) -> SingleProcess:
    """How to train, by --distributed_backend: FSDP for `fsdp`, else DDP; one process needs neither.

    flags: --opt and --dtype, by their names.

    Raises UsageError for a backend that this device or these flags exclude.
    """
    if backend == "nccl" and device.type != "cuda":
        raise UsageError(
            "--distributed_backend nccl needs GPUs, and this runs on a CPU; choose gloo, fsdp or None"
        )
    if processes.size == 1:
        return SingleProcess(processes)
    if backend != "fsdp":
        return DDP(processes, device)
    if flags["opt"] == "adafactor" or flags["dtype"] == "torch.float16":
        raise UsageError(
            "--distributed_backend fsdp goes with --opt adamw or sgd, and not with --dtype torch.float16"
        )
    return FSDP(processes, device)

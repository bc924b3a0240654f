"""A network that lies in parts in several processes. In a file apart: its imports take a second."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distributed.parallel import Alone
from distributed.processes import Processes


class Sharded(Alone):
    """FSDP2 (`fully_shard`). Weights and optimiser states are float32; on CUDA gradients meet in bfloat16, if
    a process has one micro-batch in a step.

    Blocks that run once are gathered one by one. Those of the middle, where it is repeated, are gathered with
    the rest of the network, once for all passes: by themselves they would be gathered and reduced in every
    pass, and a different number of times by processes whose tokens stop at different passes, which hangs.
    """

    name, sharded = "FSDP", True

    def __init__(self, processes: Processes, device: torch.device, acc_steps: int) -> None:
        """acc_steps: micro-batches of a process in a step."""
        super().__init__(processes)
        self._mesh = init_device_mesh(device.type, (processes.size,))
        # FSDP adds micro-batches up in the format it reduces in: of many, bfloat16 would lose the later ones.
        reduced = torch.bfloat16 if device.type == "cuda" and acc_steps == 1 else torch.float32
        self._policy = MixedPrecisionPolicy(reduce_dtype=reduced)

    def place(self, model: nn.Module) -> nn.Module:
        for block in model.blocks_that_run_once():
            fully_shard(block, mesh=self._mesh, mp_policy=self._policy)
        return fully_shard(model, mesh=self._mesh, mp_policy=self._policy)

    def accumulating(self, forward: nn.Module, last: bool) -> AbstractContextManager:
        forward.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def localise(self, full: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return full
        whole = full.to(like.device)  # each process has it: nothing is sent
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

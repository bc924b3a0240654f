"""The heavy kernels of a training step alone: what would be left if all around them took no time.

The floor (`bench.floor`) takes arithmetic at the rate of the fastest product, and softmax as free. A step of
the plain path comes no nearer to it than its kernels do by themselves; ours only by calling others.
"""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.builds import PLAIN, TrainingStep, build, full_depth
from bench.plan import Size
from distributed import Precision

# Products of matrices, attention, and the loss over all words, with their backward passes.
HEAVY = {"mm", "addmm", "bmm", "baddbmm", "_log_softmax", "_log_softmax_backward_data"}
ATTENTION = "_scaled_dot_product"  # begins the names of all its kernels


class _Noted(TorchDispatchMode):
    """The heavy kernels that are dispatched, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in HEAVY or name.startswith(ATTENTION):
            self.calls.append(lambda: function(*args, **kwargs))
        return function(*args, **kwargs)


def kernels_alone(model: str, size: Size, precision: Precision) -> Callable[[], None]:
    """A work: those of forward and backward at full depth on the plain path, on what they were given there.

    It holds all that they were given: the memory of a step without freeing any of it.
    """
    made = build(model, size, precision, **PLAIN)
    step = TrainingStep(made, size, precision, length_factors=full_depth(size))
    with _Noted() as noted:
        step()

    def work() -> None:
        with torch.no_grad():
            for call in noted.calls:
                call()

    return work

"""Our Triton kernels on the imitated device: each one launch, with the bytes that it reads and writes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from models import fused_rotation, triton_kernels
from tests.cuda.imitation import Operation, note
from tests.cuda.launches import size_of


@contextmanager
def kernels_launched() -> Iterator[None]:
    """Inside, what would launch a kernel is counted as its launch; results are left as they are."""
    with ExitStack() as stack:
        for module in (fused_rotation, triton_kernels):
            stack.enter_context(replaced(module, "has_kernel", lambda x: x.is_cuda))
        stack.enter_context(replaced(fused_rotation, "turn_by_kernel", _turn_by_kernel))
        stack.enter_context(replaced(triton_kernels, "score", _score))
        stack.enter_context(replaced(triton_kernels, "add_gradients", _add_gradients))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _turn_by_kernel(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rotated: int,
    inverse: bool,
) -> None:
    sources = [source if source.stride(-1) == 1 else source.contiguous() for source in sources]
    _launch("Triton rotation", sources, targets, [cos, sin])


def _score(logits: Tensor, target: Tensor, each: Tensor, gradient: bool) -> None:
    # Read twice, and written where gradients are wanted.
    _launch("Triton cross entropy", [logits, logits], [logits] * gradient, [target, each])


def _add_gradients(sums: Sequence[Tensor], new: Sequence[Tensor], start: int) -> tuple[Tensor, ...]:
    _launch("Triton sum of gradients", new, new, new)  # of sums as many are read, and as many written
    parts = (part[:, :, start:].transpose(1, 2) for part in new)
    return tuple(part.new_empty(part.shape).transpose(1, 2) for part in parts)


def _launch(name: str, *tensors: Sequence[Tensor]) -> None:
    moved = sum(size_of(tensor) for group in tensors for tensor in group)
    note(Operation(name, None, (), {}, None, cost=(moved, 0)))

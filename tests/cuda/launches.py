"""Kernels that a GPU would be given, the bytes that they move, and an estimate of their time.

Counted is each operation that reaches the device, in the forward and the backward pass, with the kernels
that PyTorch's CUDA code launches for it (`KERNELS`, 1 otherwise). Its bytes are those of its inputs and
outputs, each once: a broadcast dimension counts once, and what a kernel keeps to itself does not count. Of
compiled regions the kernels are those of Inductor's scheduler (`tests.cuda.regions`).

Not counted: views and allocations, which launch nothing; traffic that a cache saves or a bad access pattern
adds; transfers from and to the host. Attention counts the pairs of queries and keys that its kernel computes,
hidden ones included. The time of a kernel is the longest of its traffic, its arithmetic and the least that a
kernel takes, at rates that were assumed, not measured: good for proportions.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from tests.cuda.imitation import Operation, place, tensors_in

FREE = frozenset(
    "view _unsafe_view t transpose permute expand unsqueeze squeeze slice select split split_with_sizes "
    "chunk unbind as_strided detach alias empty empty_like empty_strided new_empty new_empty_strided reshape "
    "lift_fresh _reshape_alias unfold diagonal resize_ set_ is_same_size narrow view_as_real view_as_complex "
    "_conj".split()
)
# Of operations that launch several. Where the order of a sum must not vary, indexed writes sort first.
KERNELS = {
    "native_layer_norm_backward": 2, "embedding_dense_backward": 4, "topk": 4, "sort": 4, "index_put_": 8,
    "index_put": 8, "_index_put_impl_": 8, "scatter_add_": 8, "scatter_add": 8, "index_add_": 8,
    "index_add": 8, "index_copy": 9, "index_copy_": 8, "constant_pad_nd": 2, "slice_backward": 2,
    "select_backward": 2, "scatter_reduce_": 2, "_scaled_dot_product_efficient_attention_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
}  # fmt: skip


class Kernel(NamedTuple):
    """The kernels of one operation: how many, the bytes that they move, their floating-point operations.

    place: the line of ours that asked for it, or whose backward pass it belongs to.
    """

    name: str
    launches: int
    bytes: int
    flops: int
    place: str = ""


@dataclass(frozen=True)
class Card:
    """What a GPU reaches in practice: bytes/s, FLOP/s of bfloat16 products, and the share of these that
    memory-efficient and flash attention reach."""

    bandwidth: float
    products: float
    efficient: float
    flash: float


CARDS = {
    "L4": Card(0.26e12, 55e12, 0.35, 0.55),
    "A100": Card(1.5e12, 200e12, 0.35, 0.55),
    "H100": Card(2.7e12, 450e12, 0.25, 0.5),
}
LEAST_SECONDS = 2.5e-6  # of a kernel
HOST_SECONDS = 6e-6  # of a launch


@dataclass
class Count:
    """An observer of operations (`tests.cuda.imitation.observed`)."""

    kernels: list[Kernel] = field(default_factory=list)

    def __call__(self, operation: Operation) -> None:
        if operation.name not in FREE:
            self.kernels.append(kernel_of(operation)._replace(place=place()))

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    def sums(self, by: str) -> list[Kernel]:
        """Sums of kernels with the same name or place (`by`), as kernels of that name, most bytes first."""
        launches, moved, flops = Counter(), Counter(), Counter()
        for kernel in self.kernels:
            key = getattr(kernel, by)
            launches[key] += kernel.launches
            moved[key] += kernel.bytes
            flops[key] += kernel.flops
        return [Kernel(key, launches[key], size, flops[key]) for key, size in moved.most_common()]

    def seconds(self, card: Card) -> float:
        """On the GPU, if the host keeps up."""
        return sum(_seconds(kernel, card) for kernel in self.kernels)

    @property
    def host_seconds(self) -> float:
        return self.launches * HOST_SECONDS


def kernel_of(operation: Operation) -> Kernel:
    name = operation.name
    if operation.cost is not None:
        return Kernel(name, 1, *operation.cost)
    formula = flop_registry.get(getattr(operation.function, "_overloadpacket", None))
    flops = formula(*operation.args, **operation.kwargs, out_val=operation.result) if formula else 0
    return Kernel(name, KERNELS.get(name, 1), _bytes(operation), flops)


def _bytes(operation: Operation) -> int:
    inputs = {name: value for name, value in operation.kwargs.items() if name != "out"}
    read = sum(map(size_of, tensors_in((operation.args, inputs))))
    written = sum(map(size_of, tensors_in(operation.result)))
    match operation.name:
        case "zero_" | "fill_":
            return written
        case "copy_":  # what is there is not read
            return read
        case "index" | "index_select" | "embedding" | "gather":  # only what is picked
            return 2 * written
        case "index_put_" | "_index_put_impl_" | "index_copy_" | "scatter_add_":  # in place, where it says
            return 3 * size_of(tensors_in(operation.args)[-1])
        case _:
            return read + written


def size_of(tensor: Tensor) -> int:
    """Bytes, each dimension of stride 0 counted once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count


def _seconds(kernel: Kernel, card: Card) -> float:
    rate = card.products
    if "attention" in kernel.name:
        rate *= card.flash if "flash" in kernel.name else card.efficient
    return max(kernel.bytes / card.bandwidth, kernel.flops / rate, LEAST_SECONDS * kernel.launches)

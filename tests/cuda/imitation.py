"""CUDA imitated: tensors that say they are on `cuda:0` and are computed on the CPU, or on "meta" not at all.

PyTorch's own rules of CUDA hold for them: autocast's lists, autograd's keys, kernels that take no CPU tensor
and no CPU generator. Operations that would make the host wait for the GPU are noted with the line of ours
that caused them. What differs from a GPU: kernels are the CPU's (no TF32, no rounding of flash attention),
there is one stream, one device, and no NCCL.

For a process of its own (`tests.cuda.worker`) that has called `hooks.load`: it changes torch for good.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tests.cuda import hooks, kernels
from tests.cuda.deterministic import refuses

ROOT = str(Path(__file__).parents[2])

# Operations whose tensors may be on two devices: copies, and indices on the CPU, which are copied.
COPIES = {"_to_copy", "copy_", "copy", "fill_", "lift_fresh"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# The size of their result, or their result itself, is needed by the host.
WAITING = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "equal", "is_nonzero"}


class WrongDevice(RuntimeError):
    """An operation on tensors, or a generator, of two devices, which CUDA refuses."""


class Operation(NamedTuple):
    """An operation on the imitated device, with the tensors that were computed on in its place.

    name: without "aten::" and overload. cost: (bytes, FLOPs) of a kernel that is known by these alone.
    """

    name: str
    function: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    result: Any
    cost: tuple[int, int] | None = None


@dataclass
class Notes:
    """waits: how often the host waited, by (operation, place in our code). observers: called after each
    operation."""

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    observers: list[Callable[[Operation], None]] = field(default_factory=list)


NOTES = Notes()


def note(operation: Operation) -> None:
    """Tell the observers of an operation."""
    for observer in NOTES.observers:
        observer(operation)


@contextmanager
def observed(observer: Callable[[Operation], None]) -> Iterator[None]:
    """Call `observer` after each operation."""
    NOTES.observers.append(observer)
    try:
        yield
    finally:
        NOTES.observers.remove(observer)


@contextmanager
def counted_waits() -> Iterator[Counter[tuple[str, str]]]:
    """The waits inside the context, filled in when it ends."""
    before, waits = Counter(NOTES.waits), Counter()
    yield waits
    waits.update(NOTES.waits - before)


class CudaTensor(torch.Tensor):
    """A tensor on the imitated device. inner: what it is computed on."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "CudaTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="cuda:0",
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"CudaTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self) -> list:
        _wait("tolist")
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


_backing = torch.device("cpu")


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, operations compute shapes alone: the largest model is traced in seconds."""
    global _backing
    before, _backing = _backing, torch.device("meta")
    try:
        yield
    finally:
        _backing = before


@functools.cache
def install() -> torch.device:
    """Imitate CUDA in this process from now on; returns its device."""
    hooks.take_over()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "imitated",
        "is_bf16_supported": True, "set_device": None, "synchronize": None, "manual_seed_all": None,
        "max_memory_allocated": 0, "reset_peak_memory_stats": None, "_lazy_init": None,
        "get_device_capability": (9, 0), "is_current_stream_capturing": False,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.Tensor.pin_memory = lambda self, *args: self
    empty_like = torch.empty_like
    torch.empty_like = lambda *args, pin_memory=False, **kwargs: empty_like(*args, **kwargs)
    torch.__future__.set_swap_module_params_on_conversion(True)
    F.scaled_dot_product_attention = kernels.attention_on_cuda(F.scaled_dot_product_attention)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor([...], device="cuda") is a copy from the CPU
    _Mode().__enter__()
    return torch.device("cuda", 0)


def _map(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`function` of every tensor in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, each) for each in value)
    if isinstance(value, dict):
        return {key: _map(function, each) for key, each in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in lists, tuples and dictionaries."""
    found: list[Tensor] = []
    _map(found.append, value)
    return found


def _real(value: Any) -> Any:
    return _map(lambda tensor: tensor.inner if isinstance(tensor, CudaTensor) else tensor, value)


def _run(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation of any tensors: checked, noted, and computed on the backing device."""
    name = function._schema.name.removeprefix("aten::")
    tensors = tensors_in((args, kwargs))
    on_cuda = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    device = kwargs.get("device")
    to_cuda = device is not None and torch.device(device).type == "cuda"
    if on_cuda or to_cuda:
        if torch.are_deterministic_algorithms_enabled() and refuses(function, args):
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        _require_one_device(name, function, args, kwargs, on_cuda, others)
        _note_waits(name, args, kwargs, on_cuda, others, to_cuda)
    real_args, real_kwargs = _real(args), _real(kwargs)
    real_args = tuple(_backing if _is_cuda(value) else value for value in real_args)
    if device is not None:
        real_kwargs["device"] = _backing if to_cuda else torch.device("cpu")
    real_kwargs.pop("pin_memory", None)
    kernel = kernels.ONLY_ON_CUDA.get(function) if on_cuda and _backing.type == "cpu" else None
    result = (kernel or function)(*real_args, **real_kwargs)
    if not (on_cuda or to_cuda):
        return result
    across = name == "_to_copy" and device is not None and to_cuda != bool(on_cuda)
    if across and isinstance(result, Tensor) and _shares_memory(result, real_args[0]):
        result = result.clone()  # on a GPU it is a copy
    note(Operation(name, function, real_args, real_kwargs, result))
    stays = isinstance(args[0], CudaTensor) if name in ("copy_", "index") else to_cuda or device is None
    if not stays:
        return result
    result = _map(CudaTensor, result)
    return return_and_correct_aliasing(function, args, kwargs, result)


def _is_cuda(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.device.type == "cpu" and a.data_ptr() == b.data_ptr()


def _require_one_device(
    name: str,
    function: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    on_cuda: Sequence[Tensor],
    others: Sequence[Tensor],
) -> None:
    """Raises WrongDevice where CUDA's kernels would refuse a tensor or a generator of the CPU."""
    generators = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
    if any(generator.device.type == "cpu" for generator in generators):
        raise WrongDevice(f"{name} on CUDA draws from a CPU generator, at {place()}")
    if not on_cuda or name in COPIES or (name in INDEXING and isinstance(args[0], CudaTensor)):
        return
    pointwise = (
        torch.Tag.pointwise in function.tags
    )  # takes numbers on the CPU, as tensors without dimensions
    wrong = [tuple(tensor.shape) for tensor in others if tensor.dim() or not pointwise]
    if wrong:
        shapes = [tuple(tensor.shape) for tensor in on_cuda]
        raise WrongDevice(f"{name} of CUDA tensors {shapes} and CPU tensors {wrong}, at {place()}")


def _note_waits(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    on_cuda: Sequence[Tensor],
    others: Sequence[Tensor],
    to_cuda: bool,
) -> None:
    if on_cuda and name in WAITING:
        _wait(name)
    if name == "repeat_interleave" and on_cuda and kwargs.get("output_size") is None:
        _wait("repeat_interleave without output_size")
    if name in INDEXING:
        indices = tensors_in(args[1])
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _wait(f"{name} by a mask")
        if others and any(not isinstance(index, CudaTensor) for index in indices):
            _wait(f"{name} by indices on the CPU")
    if kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]):
        return
    if name == "_to_copy" and kwargs.get("device") is not None and to_cuda != bool(on_cuda):
        _wait("copy to CUDA" if to_cuda else "copy to the CPU")
    if name == "copy_" and on_cuda and others:
        _wait("copy_ across devices")


def _wait(operation: str) -> None:
    NOTES.waits[operation, place()] += 1


def place() -> str:
    """The innermost line of the project that led here, or the backward pass of which operation."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        inside = path.startswith(ROOT) and not path.startswith((f"{ROOT}/tests/cuda/", f"{ROOT}/.venv/"))
        if inside:
            return f"{path.removeprefix(ROOT + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    node = torch._C._current_autograd_node()
    return "gradients added up" if node is None else node.name()

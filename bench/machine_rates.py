"""What this machine can do: operations a second of matrix products, bytes a second of its memory."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.builds import precision_of, waiter
from bench.plan import Size
from bench.timing import in_turn
from distributed import Precision

SQUARE = {"full": 4096, "quick": 2048, "tiny": 64}
SQUARE_CUDA = 8192
MEGABYTES = {"full": 512, "quick": 256, "tiny": 1}  # of an array: far beyond the caches, but in `tiny`
REPEATS = {"full": 15, "quick": 5, "tiny": 2}


def shapes_of(size: Size) -> dict[str, tuple[int, int, int]]:
    """The products (rows, inner, columns) that a step of this size consists of."""
    rows, width = size.batch * size.flags["sequence_length"], size.flags["n_embd"]
    return {
        "(BT, C) x (C, 3C)": (rows, width, 3 * width),
        "(BT, C) x (C, 4C)": (rows, width, 4 * width),
        "(BT, 4C) x (4C, C)": (rows, 4 * width, width),
        "(BT, C) x (C, V)": (rows, width, size.flags["vocab_size"]),
    }


def product(shape: tuple[int, int, int], precision: Precision, dtype: str) -> Callable[[], Tensor]:
    """A work: a product of matrices (rows, inner) and (inner, columns)."""
    rows, inner, columns = shape
    form = {"device": precision.device, "dtype": getattr(torch, dtype)}
    a, b = torch.randn(rows, inner, **form), torch.randn(inner, columns, **form)
    return partial(torch.mm, a, b, out=torch.empty(rows, columns, **form))


def product_flops(shape: tuple[int, int, int]) -> int:
    rows, inner, columns = shape
    return 2 * rows * inner * columns


def copy(precision: Precision, effort: str) -> tuple[Callable[[], Tensor], int]:
    """A work, a copy of an array, and the bytes that it reads and writes."""
    count = MEGABYTES[effort] * 250_000
    a, b = (torch.ones(count, device=precision.device) for _ in range(2))
    return partial(b.copy_, a), 2 * 4 * count


def matrix_rate(device: str, dtype: str, size: Size, effort: str) -> dict:
    """by_shape: FLOP/s of each product at its median. best: the highest of them, of the product `shape`.

    The lowest floor is the honest one: a shape that the library does badly is a distance that can be closed.
    """
    precision = precision_of(device, dtype)
    square = SQUARE_CUDA if precision.device.type == "cuda" and effort != "tiny" else SQUARE[effort]
    shapes = {**shapes_of(size), f"square {square}": (square, square, square)}
    works = [product(shape, precision, dtype) for shape in shapes.values()]
    seconds = in_turn(works, REPEATS[effort], 2, waiter(precision))
    rates = {
        name: product_flops(shape) / sorted(taken)[len(taken) // 2]
        for (name, shape), taken in zip(shapes.items(), seconds, strict=True)
    }
    fastest = max(rates, key=rates.__getitem__)
    return {"best": rates[fastest], "shape": shapes[fastest], "by_shape": rates}


def memory_rate(device: str, effort: str) -> dict:
    """Bytes a second, read and written: copy (b = a), triad (a = b + 2 c). best: the higher one."""
    precision = precision_of(device, "float32")
    count = MEGABYTES[effort] * 250_000
    a, b, c = (torch.ones(count, device=precision.device) for _ in range(3))
    works = [partial(b.copy_, a), partial(torch.add, b, c, alpha=2.0, out=a)]
    seconds = in_turn(works, REPEATS[effort], 2, waiter(precision))
    rates = {
        name: arrays * 4 * count / sorted(taken)[len(taken) // 2]
        for name, arrays, taken in zip(("copy", "triad"), (2, 3), seconds, strict=True)
    }
    return {"best": max(rates.values()), **rates}

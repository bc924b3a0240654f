"""Kernels in Triton, for what runs eagerly on CUDA, and whether they can run.

CUDA builds of PyTorch bring Triton. Each kernel has a plain form beside the function that launches it:
`turn_token` in `models.fused_rotation`, `score_row` in `models.losses`, `add_token` in `models.pass_store`.
Imported where a kernel may run.
"""

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # not a part of PyTorch's CPU builds
    triton = None

logger = logging.getLogger(__name__)

BLOCK = 4096  # logits that a program reads at a time


def has_kernel(x: Tensor) -> bool:
    """Whether kernels run on x: a subclass of Tensor need not have memory, or not there."""
    return triton is not None and type(x) is Tensor and _can_be_built(x.device)


@functools.cache
def _can_be_built(device: torch.device) -> bool:
    """Triton needs a C compiler and Python's headers: found out with a small kernel, once in a process."""
    x = torch.zeros(1, 1, device=device)
    try:
        score_row[(1,)](x, torch.zeros(1, dtype=torch.long, device=device), x[0], 1, 1, False, 2)
    except Exception as error:  # of any kind: compilers, drivers
        logger.warning("Triton cannot build kernels, and PyTorch's slower operations are used: %s", error)
        return False
    return True


def score(logits: Tensor, target: Tensor, each: Tensor, gradient: bool) -> None:
    """Cross entropy of logits (n, V) at target (n,) into each (n,), in whose format it is computed.

    gradient: d CE / d logits = softmax - one-hot takes the place of the logits. Reads them twice.
    """
    count, width = logits.shape
    block = min(BLOCK, 1 << (width - 1).bit_length())
    score_row[(count,)](logits, target, each, logits.stride(0), width, gradient, block, num_warps=8)


def add_gradients(sums: Sequence[Tensor], new: Sequence[Tensor], start: int) -> tuple[Tensor, ...]:
    """Gradients of keys and of values: sums += new for tokens before `start`; sums + new for the others.

    sums (B, H, S or more, D), new (B, H, S, D), twice each. Returns (B, H, S - start, D) twice, contiguous as
    (B, n, H, D).
    """
    batch, heads, tokens, size = new[0].shape
    room = new[0].new_empty(2, batch, tokens - start, heads, size)
    own = tuple(part.transpose(1, 2) for part in room)
    tensors = *sums, *new, *own
    strides = tuple(tensor.stride()[:3] for tensor in tensors)
    block_heads, block = (1 << (number - 1).bit_length() for number in (heads, size))
    half = new[0].dtype.itemsize == 2
    add_token[tokens, batch](tensors, strides, start, heads, size, block_heads, block, half)
    return own


if triton is not None:

    @triton.jit(do_not_specialize=["length", "rows"])
    def turn_token(
        # pyrefly: ignore[implicit-any-parameter]  # Triton reads annotations
        tensors, strides, cos, sin, length, rows,
        PARTS: tl.constexpr, ROTATED: tl.constexpr, INVERSE: tl.constexpr,
        HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr,
    ) -> None:  # fmt: skip
        """Program (token, group of heads): all parts. tensors, strides: PARTS sources, then PARTS targets."""
        token = tl.program_id(0).to(tl.int64)
        batch, place = token // length, token % length
        head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        number = tl.arange(0, BLOCK)[None, :]
        mask = (head < HEADS) & (number < SIZE)
        pair = tl.arange(0, BLOCK // 2)[None, :]
        at = token % rows * (SIZE // 2) + pair
        c = tl.load(cos + at, mask=pair < SIZE // 2, other=0.0)
        s = tl.load(sin + at, mask=pair < SIZE // 2, other=0.0)
        if INVERSE:
            s = -s
        for part in tl.static_range(PARTS):
            of = strides[part]
            x = tl.load(tensors[part] + batch * of[0] + place * of[1] + head * of[2] + number, mask=mask)
            if part < ROTATED:
                pairs = tl.reshape(x.to(c.dtype), (BLOCK_HEADS, BLOCK // 2, 2))
                even, odd = tl.split(pairs)
                pairs = tl.join(even * c - odd * s, even * s + odd * c)
                x = tl.reshape(pairs, (BLOCK_HEADS, BLOCK)).to(x.dtype)
            of = strides[PARTS + part]
            tl.store(
                tensors[PARTS + part] + batch * of[0] + place * of[1] + head * of[2] + number, x, mask=mask
            )

    @triton.jit(do_not_specialize=["start"])
    def add_token(
        # pyrefly: ignore[implicit-any-parameter]  # Triton reads annotations
        tensors, strides, start,
        HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr,
        HALF: tl.constexpr,
    ) -> None:  # fmt: skip
        """Program (token, sequence). tensors, strides (of batch, head, token): two sums, two new, two own."""
        token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        head = tl.arange(0, BLOCK_HEADS)[:, None]
        number = tl.arange(0, BLOCK)[None, :]
        mask = (head < HEADS) & (number < SIZE)
        for part in tl.static_range(2):
            of = strides[part]
            total = tensors[part] + batch * of[0] + head * of[1] + token * of[2] + number
            of = strides[2 + part]
            other = tensors[2 + part] + batch * of[0] + head * of[1] + token * of[2] + number
            x, y = tl.load(total, mask=mask), tl.load(other, mask=mask)
            x = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype) if HALF else x + y
            if token < start:
                tl.store(total, x, mask=mask)
            else:
                of = strides[4 + part]
                place = batch * of[0] + head * of[1] + (token - start) * of[2] + number
                tl.store(tensors[4 + part] + place, x, mask=mask)

    @triton.jit
    def score_row(
        # pyrefly: ignore[implicit-any-parameter]  # Triton reads annotations
        logits, target, each, stride,
        WIDTH: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    ) -> None:  # fmt: skip
        """Program (row): each = CE of logits at target; with GRADIENT it overwrites logits."""
        row = tl.program_id(0).to(tl.int64)
        work = each.dtype.element_ty
        wanted = tl.load(target + row)
        number = tl.arange(0, BLOCK)
        highest = tl.full((), -3e38, work)
        total = tl.full((), 0.0, work)  # of exp(x - highest)
        chosen = tl.full((), 0.0, work)
        for start in range(0, WIDTH, BLOCK):
            at = start + number
            x = tl.load(logits + row * stride + at, mask=at < WIDTH, other=float("-inf")).to(work)
            higher = tl.maximum(highest, tl.max(x, 0))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
            chosen += tl.sum(tl.where(at == wanted, x, 0.0), 0)
            highest = higher
        tl.store(each + row, highest - chosen + tl.log(total))
        if GRADIENT:
            for start in range(0, WIDTH, BLOCK):
                at = start + number
                x = tl.load(logits + row * stride + at, mask=at < WIDTH, other=float("-inf")).to(work)
                chance = tl.exp(x - highest) / total
                grad = tl.where(at == wanted, chance - 1.0, chance)
                tl.store(logits + row * stride + at, grad.to(logits.dtype.element_ty), mask=at < WIDTH)

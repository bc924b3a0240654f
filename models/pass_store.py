"""Attention to all passes so far without copies of their keys and values.

A `PassStore` holds the keys and values of one layer in one forward pass of the model. Each pass writes its
own into the next free places and attends to all that are in use. PyTorch's operation needs the keys and
values of all passes in one tensor: concatenated anew in each pass, with their gradients taken apart again.

Shapes: B batch, H heads, n tokens of a pass, S keys so far, D head size.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._triton import has_triton

from models import triton_kernels
from models.attention_kernels import (
    HALF,
    Result,
    attend,
    attend_backward,
    attend_by_pass,
    attend_by_pass_backward,
)
from models.config import ModelConfig
from models.losses import product_dtype
from models.masks import AttentionMask
from models.mixture_of_repeats import Routing, TopK

if TYPE_CHECKING:
    from models.language_model import LanguageModel


class Form(NamedTuple):
    """A way to attend to the keys of all passes.

    attend, backward: `models.attention_kernels`. mask: as they take it, of an AttentionMask and the queries'
    format; None where there is one pass, and it is causal.
    by_pass: the passes are sequences of a batch, with the same tokens, rather than parts of one sequence.
    """

    attend: Callable[..., Result]
    backward: Callable[..., Result]
    mask: Callable[[AttentionMask, torch.dtype], Any]
    by_pass: bool = False


def _flex_attend(*args: Any) -> Result:
    from models.flex import attend_to_blocks

    return attend_to_blocks(*args)


def _flex_backward(*args: Any, scale: float) -> Result:
    from models.flex import attend_to_blocks_backward

    return attend_to_blocks_backward(*args, scale=scale)


def _no_mask(mask: AttentionMask, dtype: torch.dtype) -> None:
    if not mask.every_pass_is_causal:
        raise ValueError("attention pass by pass needs the same tokens in all passes, and no window")


FORMS = {
    "masked": Form(attend, attend_backward, lambda mask, dtype: mask.bias(dtype)),
    "flash": Form(attend_by_pass, attend_by_pass_backward, _no_mask, by_pass=True),
    "flex": Form(_flex_attend, _flex_backward, lambda mask, dtype: mask.block_mask),
}
HEAD_SIZES = range(8, 257, 8)  # that the kernels take
AMPERE = (8, 0)  # compute capability


def choose_store(
    model: "LanguageModel", length: int, routing: Routing | None
) -> "Callable[[Tensor], PassStore] | None":
    """What makes the stores of a forward pass, or None where its passes concatenate keys.

    length: the longest sequence's tokens.
    """
    if torch.compiler.is_compiling():
        return None
    form = choose_form(model.config, model.lm_head.weight, model.training)
    if form == "plain":
        return None
    later = sum(routing.tokens[1:]) if isinstance(routing, TopK) else length * (model.repeats - 1)
    compiled = model.transformer.middle[0].graphs is not None  # graphs copy gradients that are in pieces
    return lambda keys: PassStore(form, length + later, keys, contiguous_gradients=compiled)


def choose_form(config: ModelConfig, weight: Tensor, training: bool) -> str:
    """How passes attend to earlier ones: as `--attention` asks for, or the next of these that applies.

    - flex: for any tokens, on GPUs where Triton is installed.
    - flash: for passes of the same tokens without a window, on GPUs in half precision.
    - masked: for any tokens, on GPUs since Ampere with heads that the kernels take, and not in float64.
    - plain: PyTorch's operation on concatenated keys and values. Always with dropout and under activation
      checkpointing: what is computed again must not write.

    Args:
        weight: of the model: for its device and format.
        training: whether dropout is on and a backward pass may follow.
    """
    form, on_cuda = config.attention, weight.device.type == "cuda"
    recomputes = config.activation_checkpointing != "none"
    if training and (config.dropout or recomputes):
        return "plain"
    if form == "fast":
        form = "masked" if on_cuda else "plain"
    if on_cuda and not _kernels_run(config.attention_head_size, weight):
        return "plain"
    if form == "flash" and (config.variant.stops_early or config.attention_window_length is not None):
        return "masked"
    if form == "flash" and on_cuda and product_dtype(weight, weight) not in HALF:
        return "masked"
    return "masked" if form == "flex" and on_cuda and not has_triton() else form


def _kernels_run(head_size: int, weight: Tensor) -> bool:
    fits = head_size in HEAD_SIZES and weight.dtype != torch.float64
    return fits and torch.cuda.get_device_capability(weight.device) >= AMPERE


class PassStore:
    """Keys and values of all passes of one layer, in one buffer (batch, tokens, 2 H, D).

    A token's keys of all heads are followed by its values, so that one kernel writes both. A pass takes
    places along one axis: the tokens, of all passes one after another; or the batch, where a form attends
    by pass.
    """

    def __init__(self, form: str, capacity: int, like: Tensor, contiguous_gradients: bool = False) -> None:
        """
        Args:
            form: key into FORMS.
            capacity: about how many tokens of a sequence there will be, over all passes.
            like: keys (B, H, n, D) of the first pass.
            contiguous_gradients: of keys and values, as (B, n, H, D), for where others would be copied.
        """
        batch, heads, tokens, size = like.shape
        self.form, self.heads = FORMS[form], heads
        self.axis = 0 if self.form.by_pass else 1
        shape = (-(-capacity // tokens) * batch, tokens) if self.form.by_pass else (batch, capacity)
        self.buffer = like.new_empty(*shape, 2 * heads, size)
        self.gradients = _PassGradients(2 * self.axis, contiguous_gradients)  # (batch, H, tokens, D)
        self.link: Tensor | None = None  # to the newest pass: see `_PassAttention`
        self._used = 0

    def next_pass(self, keys: Tensor) -> "StoredPass":
        """Reserve the places of a pass with these keys (B, H, n, D)."""
        start, self._used = self._used, self._used + keys.shape[2 * self.axis]
        if self._used > self.buffer.shape[self.axis]:
            earlier, shape = self.buffer, list(self.buffer.shape)
            shape[self.axis] = max(self._used, 2 * shape[self.axis])
            self.buffer = earlier.new_empty(shape)
            self.buffer.narrow(self.axis, 0, start).copy_(earlier.narrow(self.axis, 0, start))
        return StoredPass(self, start, self._used)

    def before(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys, and values, at the places before this one: views (batch, H, tokens, D)."""
        seen = self.buffer.narrow(self.axis, 0, place).transpose(1, 2)
        return seen[:, : self.heads], seen[:, self.heads :]

    def write(self, start: int, stop: int, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values (B, H, n, D) at these places."""
        places = self.buffer.narrow(self.axis, start, stop - start)
        # Earlier passes have saved views of the buffer for the backward pass. Autograd would refuse these
        # after a write, as it cannot know that the places are others.
        with torch.autograd._unsafe_preserve_version_counter(self.buffer):
            torch.cat((keys.transpose(1, 2), values.transpose(1, 2)), dim=2, out=places)


class StoredPass(NamedTuple):
    """A pass in a store: its places are those from start to stop."""

    store: PassStore
    start: int
    stop: int

    def earlier(self) -> list[Tensor]:
        """Keys, and values, of the passes before: (B, H, S, D) each."""
        seen = self.store.before(self.start)
        if not self.store.form.by_pass:
            return list(seen)
        batch = self.stop - self.start
        return [x.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4).flatten(2, 3) for x in seen]

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, scale: float
    ) -> Tensor:
        """Keep the keys and values of the pass, and attend to those of all passes so far: (B, H, n, D)."""
        given = self.store.form.mask(mask, queries.dtype)
        y, self.store.link = _PassAttention.apply(queries, keys, values, self.store.link, self, given, scale)
        return y


class _PassGradients:
    """Gradients of a layer's keys and values, summed over the passes that saw them: (B, H, S, D) each."""

    def __init__(self, axis: int, contiguous: bool) -> None:
        """
        Args:
            axis: along which a pass has places.
            contiguous: whether those of a pass shall be contiguous, as (B, n, H, D).
        """
        self._axis, self._contiguous = axis, contiguous
        self._sums: tuple[Tensor, ...] = ()
        self._backward = -1

    def finish(self, start: int, stop: int, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        """Add a pass' gradients of all keys and values that it saw; the sums for those at its places.

        gradients: of keys and values; empty where the result of the pass has none.
        """
        # With retain_graph there are several backward passes, and one that is asked for the gradients of
        # few tensors may end before the first pass: what it left behind must not be added to.
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._sums, self._backward = (), backward
        if self._sums and gradients and self._axis == 2 and _added_by_kernel(*self._sums, *gradients):
            parts = triton_kernels.add_gradients(self._sums, gradients, start)
        else:
            if self._sums and gradients:
                for total, new in zip(self._sums, gradients, strict=True):
                    total.narrow(self._axis, 0, stop).add_(new)
            self._sums = self._sums or gradients  # of the last pass, which saw all keys
            if not self._sums:
                return None, None
            parts = tuple(total.narrow(self._axis, start, stop - start) for total in self._sums)
            parts = _contiguous(parts) if self._contiguous else parts
        if start == 0:
            self._sums = ()
        return parts


def _added_by_kernel(*tensors: Tensor) -> bool:
    return all(x.stride(-1) == 1 for x in tensors) and triton_kernels.has_kernel(tensors[0])


def _contiguous(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same, contiguous as (B, n, H, D): one copy of both where it is one copy of each otherwise."""
    transposed = [part.transpose(1, 2) for part in parts]
    if all(part.is_contiguous() for part in transposed):
        return parts
    return tuple(part.transpose(1, 2) for part in torch.cat(transposed).chunk(len(parts)))


class _PassAttention(torch.autograd.Function):
    """Masked softmax attention of the queries of a pass to the keys of all passes so far.

    Autograd sees the keys and values of this pass alone. It reads those of earlier passes in the buffer, and
    their gradients go through `_PassGradients`: the backward function of each pass adds the gradients of all
    keys that the pass saw, and returns the sums for the pass' own. These are complete if the backward
    functions of all later passes have run. The engine runs a function after all those with an edge to it, so
    there is an edge from each pass to the one before: the forward function also returns an empty tensor, the
    link, which the next pass takes. The edge is there, and the function runs, even if the result of a pass
    has no gradient, or if the next pass is not made from it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        link: Tensor | None,
        place: StoredPass,
        mask: Any,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        store = place.store
        store.write(place.start, place.stop, keys, values)
        seen = store.before(place.stop)
        y, *saved = store.form.attend(queries, *seen, mask, scale)
        ctx.save_for_backward(queries, *seen, y, *saved)
        ctx.form, ctx.gradients, ctx.mask = store.form, store.gradients, mask  # a mask is all layers'
        ctx.places, ctx.scale = (place.start, place.stop), scale
        ctx.set_materialize_grads(False)
        return y, queries.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_queries, others = None, ()
        if grad is not None:
            queries, keys, values, *saved = ctx.saved_tensors
            grad_queries, *others = ctx.form.backward(
                grad, queries, keys, values, ctx.mask, *saved, scale=ctx.scale
            )
        return grad_queries, *ctx.gradients.finish(*ctx.places, tuple(others)), None, None, None, None

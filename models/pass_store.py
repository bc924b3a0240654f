"""Attention to all passes so far without copies of their keys and values.

A `PassStore` holds the keys and values of one layer in one forward pass of the model. Each pass writes its
own into the next free places and attends to all that are in use. PyTorch's operation needs the keys and
values of all passes in one tensor: concatenated anew in each pass, with their gradients taken apart again.

Shapes: B batch, H heads, n tokens of a pass, S keys so far, D head size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.attention_kernels import FORMS
from models.config import ModelConfig
from models.masks import AttentionMask

HEAD_SIZES = range(8, 257, 8)  # that the kernels take
AMPERE = (8, 0)  # compute capability


def choose_form(config: ModelConfig, device: torch.device, training: bool) -> str:
    """How passes attend to earlier ones: the form that `--attention` asks for, or plain.

    Plain is PyTorch's operation on concatenated keys and values. It is the only form under activation
    checkpointing (what is computed again must not write), with dropout, in a compiled step, for heads that
    the kernels do not take, and on GPUs before Ampere.

    Args:
        training: whether dropout is on and a backward pass may follow.
    """
    form = config.attention
    if form == "fast":
        form = "plain" if device.type == "cpu" else "masked"
    recomputes = config.activation_checkpointing != "none"
    if torch.compiler.is_compiling() or (training and (config.dropout or recomputes)):
        return "plain"
    if form != "plain" and device.type == "cuda":
        runs = config.attention_head_size in HEAD_SIZES
        return form if runs and torch.cuda.get_device_capability(device) >= AMPERE else "plain"
    return form


class PassStore:
    """Keys and values of all passes of one layer, in one buffer (B, capacity, 2 H, D).

    A token's keys of all heads are followed by its values, so that one kernel writes both.
    """

    def __init__(self, form: str, capacity: int, like: Tensor) -> None:
        """
        Args:
            form: key into `models.attention_kernels.FORMS`.
            capacity: about how many tokens of a sequence there will be, over all passes.
            like: keys (B, H, any, D) of the same size, format and device.
        """
        batch, heads, _, size = like.shape
        self.form, self.heads = FORMS[form], heads
        self.buffer = like.new_empty(batch, capacity, 2 * heads, size)
        self.gradients = _PassGradients()
        self.link: Tensor | None = None  # to the newest pass: see `_PassAttention`
        self._used = 0

    def next_pass(self, tokens: int) -> "StoredPass":
        """Reserve the places of a pass with so many tokens of a sequence."""
        start, self._used = self._used, self._used + tokens
        if self._used > self.buffer.shape[1]:
            earlier, (batch, capacity, *rest) = self.buffer, self.buffer.shape
            self.buffer = earlier.new_empty(batch, max(self._used, 2 * capacity), *rest)
            self.buffer[:, :start] = earlier[:, :start]
        return StoredPass(self, slice(start, self._used))

    def before(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys, and values, at the places before this one: views (B, H, place, D)."""
        seen = self.buffer[:, :place].transpose(1, 2)
        return seen[:, : self.heads], seen[:, self.heads :]

    def write(self, places: slice, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values (B, H, n, D) at these places."""
        # Earlier passes have saved views of the buffer for the backward pass. Autograd would refuse these
        # after a write, as it cannot know that the places are others.
        with torch.autograd._unsafe_preserve_version_counter(self.buffer):
            torch.cat((keys.transpose(1, 2), values.transpose(1, 2)), dim=2, out=self.buffer[:, places])


class StoredPass(NamedTuple):
    """The places of a pass in a store."""

    store: PassStore
    places: slice

    def earlier(self) -> tuple[Tensor, Tensor]:
        """Keys, and values, of the passes before."""
        return self.store.before(self.places.start)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, scale: float
    ) -> Tensor:
        """Keep the keys and values of the pass, and attend to those of all passes so far: (B, H, n, D)."""
        bias = mask.bias(queries.dtype)
        inputs = queries, keys, values, self.store.link
        y, self.store.link = _PassAttention.apply(*inputs, self.store, self.places, bias, scale)
        return y


class _PassGradients:
    """Gradients of a layer's keys and values, summed over the passes that saw them: (B, H, S, D) each."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, ...] = ()
        self._backward = -1

    def add(self, *gradients: Tensor) -> None:
        """Add a pass' gradients of all keys and values that it saw."""
        # With retain_graph there are several backward passes, and one that is asked for the gradients of
        # few tensors may end before the first pass: what it left behind must not be added to.
        backward = torch._C._current_graph_task_id()
        if not self._sums or backward != self._backward:
            self._sums, self._backward = gradients, backward  # of the last pass, which saw all keys
            return
        for total, gradient in zip(self._sums, gradients, strict=True):
            total[:, :, : gradient.shape[2]].add_(gradient)

    def take(self, places: slice) -> tuple[Tensor | None, ...]:
        """The sums for the keys and values at these places."""
        if not self._sums or self._backward != torch._C._current_graph_task_id():
            return None, None
        parts = tuple(total[:, :, places] for total in self._sums)
        if places.start == 0:
            self._sums = ()
        return parts


class _PassAttention(torch.autograd.Function):
    """softmax(scale Q K^T + bias) V for the queries of a pass and the keys of all passes so far.

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
        store: PassStore,
        places: slice,
        bias: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        store.write(places, keys, values)
        seen = store.before(places.stop)
        y, *saved = store.form.attend(queries, *seen, bias, scale)
        ctx.save_for_backward(queries, *seen, bias, y, *saved)
        ctx.form, ctx.places, ctx.gradients, ctx.scale = store.form, places, store.gradients, scale
        ctx.set_materialize_grads(False)
        return y, queries.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_queries = None
        if grad is not None:
            grad_queries, *others = ctx.form.backward(grad, *ctx.saved_tensors, scale=ctx.scale)
            ctx.gradients.add(*others)
        return grad_queries, *ctx.gradients.take(ctx.places), None, None, None, None, None

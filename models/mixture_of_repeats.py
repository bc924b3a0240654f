"""Mixture of Repeats: a router after every pass decides which tokens take the next (paper, Section 4).

A token that goes on with score s ends the next pass as (1 - s) * x_in + s * ln_mid(pass(x_in)), where x_in is
what it was before the depth embedding. One that does not keeps its representation: it is its final one.

Shapes: *rows.shape as in `models.active_tokens`, C = n_embd, R = n_repeat.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from models.active_tokens import Rows, latest
from models.attention import Context
from models.key_values import Memory, Store
from models.repeaters import Middle, Repeated


class MixtureOfRepeats:
    """Adaptive LN-CoTFormer: halted tokens leave the rows, and stay visible through their earlier keys."""

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        everyone, score = rows, None
        outputs, scores = [], []
        for repeat in range(1, middle.n_repeat + 1):
            entering = x
            x = middle.plain_pass(middle.with_depth(x, repeat), rows, middle.all_passes(memory, repeat))
            x = middle.after_pass(_mixed(entering, x, score), rows, repeat)
            outputs.append((rows, x))
            if repeat == middle.n_repeat:
                break
            score = middle.routers[repeat - 1](x)
            scores.append((rows, score))
            rows = middle.routing.choose(repeat, score, rows)
            if not rows.total:
                break
            x, score = rows.take(x), rows.take(score[..., None])
        final = _with_all_routers(latest(outputs, everyone), middle, len(outputs))
        return Repeated([final], [taken for taken, _ in outputs], scores)


class RoutedUniversal:
    """Adaptive Block Universal Transformer: a pass attends to all tokens of the same pass, halted ones too.

    A halted token offers, with the depth embedding in the first block and without it in the others, keys and
    values of its final representation. Of it nothing else is computed: no query, no MLP.
    """

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        everyone, score = rows, None
        passes, scores = [], []
        for repeat in range(1, middle.n_repeat + 1):
            shifted = middle.with_depth(x, repeat)
            stores = middle.own_pass(memory, repeat)
            if rows.token is not everyone.token:
                place = rows.within(everyone)
                run = partial(_among_everyone, middle, rows, everyone, place)
                passed = middle.run_pass(run, stores, everyone, rows, x, shifted)
                active = _mixed(_at(x, place, rows), passed, score)
                x = put(x, place, active)
            else:
                x = active = _mixed(x, middle.plain_pass(shifted, rows, stores), score)
            x = middle.after_pass(x, everyone, repeat)
            if rows.total:
                passes.append(rows)
            if repeat == middle.n_repeat:
                break
            if rows.total:
                score = middle.routers[repeat - 1](active)
                scores.append((rows, score))
                rows = middle.routing.choose(repeat, score, rows)
                score = rows.take(score[..., None])
            if not rows.total and not memory.lasting:
                break  # tokens still to come would look at the keys of the passes left; here there are none
        return Repeated([_with_all_routers(x, middle, len(passes))], passes, scores)


def _among_everyone(
    middle: Middle,
    rows: Rows,
    everyone: Rows,
    place: Tensor,
    stores: Sequence[Store],
    x: Tensor,
    shifted: Tensor,
) -> Tensor:
    """A pass of the rows at `place` among all, x before the depth embedding and `shifted` behind it."""
    active, context = _at(shifted, place, rows), Context(shifted, everyone)
    for block, store in zip(middle.blocks, stores, strict=True):
        active = block(active, rows, store, context)
        context = Context(put(x, place, active), everyone)
    return middle.ln_mid(active)


def _with_all_routers(x: Tensor, middle: Middle, n_passes: int) -> Tensor:
    """x, depending on the routers that admitted nobody too, by a gradient of zero.

    So each forward pass gives every weight a gradient: weight decay then acts on all in each step, and
    processes that train together (DDP) wait for the same gradients whatever the capacities.
    """
    idle = middle.routers[n_passes - 1 :]
    if not idle or not torch.is_grad_enabled():
        return x
    return x + 0.0 * sum(router.mod_router.weight.sum() for router in idle)


def _mixed(entering: Tensor, passed: Tensor, score: Tensor | None) -> Tensor:
    """score: (*rows.shape, 1), None in the first pass."""
    return passed if score is None else (1.0 - score) * entering + score * passed


def _at(x: Tensor, place: Tensor, rows: Rows) -> Tensor:
    """The rows at `place` among all, in the layout of `rows`."""
    return x.flatten(0, -2).index_select(0, place).unflatten(0, rows.shape)


def put(x: Tensor, place: Tensor, new: Tensor) -> Tensor:
    """x (*, C) with the rows at `place` replaced by `new`."""
    flat = x.flatten(0, -2)
    return flat.index_copy(0, place, new.flatten(0, -2).to(x.dtype)).view_as(x)

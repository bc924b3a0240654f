"""Activation checkpointing: what the backward pass computes a second time instead of finding it kept.

A stretch of the network that is computed again has to be a function of its inputs alone. Blocks hand keys and
values to stores, and a store would have them twice: so the stretch works with what the stores held when it
began (`key_values.Past`), and gives its own keys and values back beside its result; the stores get them once.

Shapes: *rows.shape as in `models.active_tokens`, C = n_embd.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.active_tokens import Rows
from models.key_values import ForwardStore, Past, Store, View


def recomputed(
    function: Callable[..., Tensor], stores: Sequence[ForwardStore], key_rows: Rows, rows: Rows, *args: Any
) -> Tensor:
    """function(stores, *args), of which only `args`, the result, keys and values are kept for backward.

    Each of the stores is added to once, keys and values of `key_rows` for queries of `rows`. function may
    depend on nothing that changes later: what a loop goes through belongs into args. Dropout draws the same
    numbers again.
    """
    pasts = [store.past(key_rows, rows) for store in stores]

    def pure(*args: Any) -> tuple[Tensor, list[list[Tensor]]]:
        beside = [_Beside(past) for past in pasts]
        return function(beside, *args), [store.kept for store in beside]

    result, kept = checkpoint(pure, *args, use_reentrant=False)
    for store, tensors in zip(stores, kept, strict=True):
        store.keep(tensors, key_rows)
    return result


def pays(training: bool, store: Store) -> bool:
    """Whether there will be a backward pass to keep things for. Nothing a cache holds has one."""
    return training and torch.is_grad_enabled() and not store.lasting


class _Beside:
    """A store that answers as another one did at some time, and puts what it is given aside."""

    lasting = False

    def __init__(self, past: Past) -> None:
        self._past = past
        self.kept: list[Tensor] = []

    def add(self, kept: Sequence[Tensor], key_rows: Rows, query_rows: Rows) -> View:
        # Copies: values are a part of what queries, keys and values were computed in, and would keep it all.
        self.kept = [tensor.contiguous() for tensor in kept]
        return self._past.joined_by(self.kept)

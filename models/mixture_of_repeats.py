"""Mixture of Repeats: a router after every pass decides which tokens take the next (paper, Section 4).

A token that takes the next pass with router score s ends it as (1 - s) * x_in + s * ln_mid(pass(x_in)), where
x_in is its representation before the depth embedding. A token that does not has reached its final one.

Shapes: *tokens.shape as in `models.active_tokens`, C = n_embd, R = n_repeat.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import ActiveTokens, final_states, replace_at, take
from models.attention import KeySource
from models.config import ModelConfig
from models.kv_cache import KVCache, LayerKeys, PassKeys
from models.repeaters import Middle, RepeaterOutput


class Router(nn.Module):
    """One vector w: the score of a token is sigmoid(w . x) (paper, Section 4.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mod_router = nn.Linear(config.n_embd, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (*tokens.shape, C) -> scores (*tokens.shape), in float32 at least: in bfloat16 many would tie."""
        work = torch.promote_types(x.dtype, torch.float32)
        x, weight = x.to(work), self.mod_router.weight.to(work)
        with torch.autocast(x.device.type, enabled=False):
            if x.is_cuda:  # where a matrix product may be in TF32, hardly finer than bfloat16
                return (x * weight).sum(-1).sigmoid()
            return F.linear(x, weight).squeeze(-1).sigmoid()


class Routing(Protocol):
    """Decides after each of the passes 1..R-1 which of its tokens take the next.

    compilable: whether one compiled graph serves it and others of its kind.
    """

    compilable: bool

    def choose(self, repeat: int, scores: Tensor, tokens: ActiveTokens) -> ActiveTokens:
        """The tokens of pass `repeat`, with scores (*tokens.shape) -> the tokens of the next pass."""
        ...


class TopK:
    """The tokens of each sequence with the highest scores, a given number of them: how models are trained.

    Whether a token is among them depends on later tokens. This is not causal: it cannot generate text token
    by token, and a perplexity measured with it uses a little of the future.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """tokens: of a sequence, how many take each of the passes 1..R (`capacities.tokens_per_pass`)."""
        self.tokens = tokens
        # A compiled graph holds for all numbers but 0 and 1, which are constants in it.
        self.compilable = min(tokens) > 1

    def choose(self, repeat: int, scores: Tensor, tokens: ActiveTokens) -> ActiveTokens:
        count = self.tokens[repeat]
        # A compiled step does not compare: it would need another graph for each answer.
        if not torch.compiler.is_compiling() and count == self.tokens[repeat - 1]:
            return tokens.all()
        if scores.dim() != 2:
            raise ValueError("top-k routing needs sequences of equal length; use thresholds")
        return tokens.select(scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values)


class Threshold:
    """The tokens whose score reaches the router's threshold: causal, and independent of the batch."""

    compilable = False

    def __init__(self, thresholds: Sequence[float]) -> None:
        """thresholds: R - 1 of them; at 0 every token takes the next pass, above 1 none does."""
        self._thresholds = thresholds

    def choose(self, repeat: int, scores: Tensor, tokens: ActiveTokens) -> ActiveTokens:
        threshold = self._thresholds[repeat - 1]
        return tokens.all() if threshold <= 0.0 else tokens.filter(scores >= threshold)


class MixtureOfRepeats:
    """Adaptive LN-CoTFormer: halted tokens leave the batch; later passes attend to their earlier keys."""

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput:
        assert middle.routing is not None  # the variant routes
        active, score = tokens, None
        by_pass, scores = [], []
        for repeat in range(1, middle.n_repeat + 1):
            keys = middle.keys(cache, repeat, all_passes=True)
            passed = middle.run_pass(middle.with_depth(x, repeat), active, keys)
            x = middle.after_pass(_mixed(x, passed, score), active, repeat)
            by_pass.append((active, x))
            if repeat == middle.n_repeat:
                break
            score = middle.routers[repeat - 1](x)
            scores.append((active, score))
            active = middle.routing.choose(repeat, score, active)
            if not active.count:
                break
            x, score = active.gather(x), active.gather(score[..., None])
        final = _with_all_routers(final_states(by_pass, tokens), middle, len(by_pass))
        return RepeaterOutput([final], [active for active, _ in by_pass], scores)


class RoutedUniversal:
    """Adaptive Block Universal Transformer: a pass attends to all tokens of the same pass, halted ones too.

    Of a halted token only keys and values are computed, from its final representation (plus the depth
    embedding in the first block): no query, no MLP.
    """

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput:
        assert middle.routing is not None  # the variant routes
        active, score = tokens, None
        passes, scores = [], []
        for repeat in range(1, middle.n_repeat + 1):
            shifted = middle.with_depth(x, repeat)
            keys = middle.keys(cache, repeat, all_passes=False)
            if active.index is tokens.index:  # nothing has halted
                x = active_x = _mixed(x, middle.run_pass(shifted, active, keys), score)
            else:
                place = active.places_in(tokens)
                run = partial(_among_all, middle, active, tokens, place)
                passed = middle.run(run, keys, tokens, active, x, shifted)
                active_x = _mixed(_at(x, place, active), passed, score)
                x = replace_at(x, place, active_x)
            x = middle.after_pass(x, tokens, repeat)
            if active.count:
                passes.append(active)
            if repeat == middle.n_repeat:
                break
            if active.count:
                score = middle.routers[repeat - 1](active_x)
                scores.append((active, score))
                active = middle.routing.choose(repeat, score, active)
                score = active.gather(score[..., None])
            if not active.count and not cache.persistent:
                break  # with a cache, tokens still to come will attend to the keys of the remaining passes
        return RepeaterOutput([_with_all_routers(x, middle, len(passes))], passes, scores)


def _among_all(
    middle: Middle,
    active: ActiveTokens,
    tokens: ActiveTokens,
    place: Tensor,
    keys: Sequence[LayerKeys],
    x: Tensor,
    shifted: Tensor,
) -> Tensor:
    """A pass of the active tokens at `place`, with keys of all tokens.

    x: before the depth embedding, shifted: after it, (*tokens.shape, C) each -> (*active.shape, C).
    """
    active_x, source = _at(shifted, place, active), KeySource(shifted, tokens)
    for block, layer_keys in zip(middle.blocks, keys, strict=True):
        active_x = block(active_x, active, layer_keys, source)
        source = KeySource(replace_at(x, place, active_x), tokens)
    return middle.ln_mid(active_x)


def _with_all_routers(x: Tensor, middle: Middle, n_passes: int) -> Tensor:
    """x, made to depend, with a gradient of zero, on the routers that were not used.

    So every forward pass gives every weight a gradient: weight decay acts on all in each step, and ranks that
    train together (DDP) wait for the same gradients whatever the capacities.
    """
    idle = middle.routers[n_passes - 1 :]
    if not idle or not torch.is_grad_enabled():
        return x
    return x + 0.0 * sum(weight.sum() for router in idle for weight in router.parameters())


def _mixed(entering: Tensor, passed: Tensor, score: Tensor | None) -> Tensor:
    """score: (*tokens.shape, 1), None in the first pass."""
    return passed if score is None else (1.0 - score) * entering + score * passed


def _at(x: Tensor, place: Tensor, active: ActiveTokens) -> Tensor:
    """The active tokens at `place` among all: (*active.shape, C)."""
    return take(x.flatten(0, -2), place).unflatten(0, active.shape)

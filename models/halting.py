"""Halting by a learned distribution over passes: stick breaking and PonderNet (paper, Appendix D).

Shapes: *tokens.shape as in `models.active_tokens`, N tokens, C = n_embd, R = n_repeat.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import ActiveTokens, replace_at
from models.attention import KeySource
from models.config import ModelConfig
from models.kv_cache import KVCache, LayerKeys, PassKeys
from models.repeaters import Middle, RepeaterOutput


class HaltingGate(nn.Module):
    """C -> C, GELU, -> 2: log-probabilities of continuing and of halting after a pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._gate = nn.Sequential(  # the name in published checkpoints
            nn.Linear(config.n_embd, config.n_embd), nn.GELU(), nn.Linear(config.n_embd, 2, bias=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., C) -> log P(continue), log P(halt), each (...), in float32 at least."""
        logits = self._gate(x)
        work = torch.promote_types(logits.dtype, torch.float32)
        return F.log_softmax(logits, -1, dtype=work).unbind(-1)


class StickBreaking:
    """Stick breaking (Tan et al. 2023), frozen on stop, as in the released code.

    After pass r a token halts with probability p_r = halt_r * prod_{j<r} continue_j. When its probability of
    not having halted falls under 1 - halt_threshold, its representation is frozen and it leaves the batch.
    Keys and values are made from the running mixture sum_j p_j x_j + P(not halted) * x, not from x. The
    penalty is the expected number of passes, R + 1 for never halting, a mean over tokens.

    A compiled step, whose shapes must not depend on the text, computes frozen tokens too, to no effect.
    """

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput:
        active = tokens
        flat = x.flatten(0, -2)  # (N, C)
        never = flat.new_ones(len(flat), dtype=torch.promote_types(x.dtype, torch.float32))  # P(not halted)
        log_continue = torch.zeros_like(never)
        going, fixed = torch.ones_like(never), torch.zeros_like(flat)
        penalty = torch.zeros_like(never[0])
        passes, counts = [], []
        # Which tokens are frozen; None where those leave the batch.
        frozen = never.new_zeros(len(never), dtype=torch.bool) if torch.compiler.is_compiling() else None
        for repeat in range(1, middle.n_repeat + 1):
            place = active.places_in(tokens)
            active_x = flat.index_select(0, place)
            mixture = fixed + going[:, None] * flat
            run = partial(_among_mixtures, middle, active, tokens, place)
            keys = middle.keys(cache, repeat, all_passes=False)
            own = fixed[place], going[place, None]
            active_x = middle.run(run, keys, tokens, active, active_x, mixture, *own)
            go, halt = middle.halting_gate(active_x)
            halting = never[place] * halt.exp()
            if frozen is not None:
                active_x = torch.where(frozen[:, None], flat, active_x)
                go = torch.where(frozen, log_continue, go)
                halting = halting.masked_fill(frozen, 0.0)
                counts.append((~frozen).sum())
            flat = replace_at(flat, place, active_x)
            if active.count:
                passes.append(active)
            penalty = penalty + repeat * halting.sum()
            # A frozen token's gate stays as it was, and its chance of never halting keeps falling.
            log_continue = log_continue.index_copy(0, place, go)
            never = never * log_continue.exp()
            if repeat == middle.n_repeat:
                break
            still = never[place] >= 1.0 - middle.halt_threshold
            going_now = torch.zeros_like(going).index_copy(0, place, torch.where(still, never[place], 0.0))
            fixed = fixed + (going - going_now)[:, None] * flat
            going = going_now
            if frozen is not None:
                frozen = ~still
                continue
            active = active.filter(still.view(active.shape))
            if not active.count and not cache.persistent:
                never = never * (log_continue * (middle.n_repeat - repeat)).exp()
                break
        penalty = penalty + (middle.n_repeat + 1) * never.sum()
        return RepeaterOutput([flat.unflatten(0, tokens.shape)], passes, [], penalty / len(never), counts)


def _among_mixtures(
    middle: Middle,
    active: ActiveTokens,
    tokens: ActiveTokens,
    place: Tensor,
    keys: Sequence[LayerKeys],
    active_x: Tensor,
    mixture: Tensor,
    fixed: Tensor,
    going: Tensor,
) -> Tensor:
    """A pass of the active tokens at `place`, active_x (n, C), with keys of all tokens' mixtures (N, C)."""
    for block, layer_keys in zip(middle.blocks, keys, strict=True):
        source = KeySource(mixture.unflatten(0, tokens.shape), tokens)
        active_x = block(active_x.unflatten(0, active.shape), active, layer_keys, source).flatten(0, -2)
        mixture = replace_at(mixture, place, fixed + going * active_x)
    return active_x


def halting_distribution(lambdas: Tensor) -> Tensor:
    """Halting probabilities after each pass but the last, (R - 1, ...) -> p (R, ...), which sums to 1.

    p_r = lambda_r * prod_{j<r} (1 - lambda_j); the last pass takes the rest (Banino et al. 2021).
    """
    going = torch.cat((torch.ones_like(lambdas[:1]), (1.0 - lambdas).cumprod(0)))
    return torch.cat((lambdas * going[:-1], going[-1:]))


def geometric(lambda_p: float, n_repeat: int) -> Tensor:
    """PonderNet's prior: the geometric distribution, truncated at R passes, (R,)."""
    return halting_distribution(torch.full((n_repeat - 1,), lambda_p, dtype=torch.float64))


def ponder_divergence(p: Tensor, lambda_p: float) -> Tensor:
    """KL(p || geometric prior) of p (R, ...) -> (...), in nats."""
    prior = geometric(lambda_p, len(p)).to(p).view(-1, *[1] * (p.dim() - 1))
    return (p * (p.clamp_min(1e-8) / prior.clamp_min(1e-8)).log()).sum(0)


def sampled_exits(lambdas: Tensor) -> Tensor:
    """Halting probabilities (R - 1, *shape) -> a drawn exit for each token, one-hot (R, *shape).

    Pass by pass, a uniform number of at most lambda halts the token; the last pass takes the rest. The
    numbers come from torch's generator in the order of the released code.
    """
    first, *rest = lambdas.shape[1:]
    numbers = torch.rand(first, len(lambdas) + 1, *rest, device=lambdas.device, dtype=lambdas.dtype)
    return halting_distribution((numbers.transpose(0, 1)[:-1] <= lambdas).to(lambdas.dtype))

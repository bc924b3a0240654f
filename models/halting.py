"""Halting by a learned distribution over passes: stick breaking and PonderNet (paper, Appendix D).

Shapes: *tokens.shape as in `models.active_tokens`, B batch, T tokens, N of them in any arrangement,
C = n_embd, R = n_repeat, V = vocab_size.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import ActiveTokens, replace, replace_at, take
from models.attention import KeySource
from models.config import ModelConfig
from models.kv_cache import KVCache, LayerKeys, PassKeys
from models.losses import (
    IGNORED,
    Scores,
    chunk_tokens,
    cross_entropy,
    exact,
    linear_cross_entropy,
    product_dtype,
)
from models.repeaters import Middle, RepeaterOutput

if TYPE_CHECKING:
    from models.language_model import LanguageModel


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
        log_continue, log_halt = F.log_softmax(logits, -1, dtype=work).unbind(-1)
        return log_continue, log_halt


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
        assert middle.halting_gate is not None  # the variant has one
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
            active_x = take(flat, place)
            mixture = fixed + going[:, None] * flat
            run = partial(_among_mixtures, middle, active, tokens, place)
            keys = middle.keys(cache, repeat, all_passes=False)
            own = take(fixed, place), take(going, place)[:, None]
            active_x = middle.run(run, keys, tokens, active, active_x, mixture, *own)
            go, halt = middle.halting_gate(active_x)
            halting = take(never, place) * halt.exp()
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
            log_continue = replace(log_continue, place, go)
            never = never * log_continue.exp()
            if repeat == middle.n_repeat:
                break
            left = take(never, place)
            still = left >= 1.0 - middle.halt_threshold
            going_now = replace(torch.zeros_like(going), place, torch.where(still, left, 0.0))
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
    # Not cumprod: its backward pass on CUDA adds up in no fixed order, which deterministic mode refuses.
    p, going = [], torch.ones_like(lambdas[:1])
    for halts in lambdas.split(1):
        p.append(halts * going)
        going = going * (1.0 - halts)
    return torch.cat((*p, going))


def geometric(lambda_p: float, n_repeat: int, device: torch.device | None = None) -> Tensor:
    """PonderNet's prior: the geometric distribution, truncated at R passes, (R,)."""
    return halting_distribution(torch.full((n_repeat - 1,), lambda_p, dtype=torch.float64, device=device))


def ponder_divergence(p: Tensor, lambda_p: float) -> Tensor:
    """KL(p || geometric prior) of p (R, ...) -> (...), in nats."""
    prior = geometric(lambda_p, len(p), p.device).to(p.dtype).view(-1, *[1] * (p.dim() - 1))
    return (p * (p.clamp_min(1e-8) / prior.clamp_min(1e-8)).log()).sum(0)


def sampled_exits(lambdas: Tensor) -> Tensor:
    """Halting probabilities (R - 1, *shape) -> a drawn exit for each token, one-hot (R, *shape).

    Pass by pass, a uniform number of at most lambda halts the token; the last pass takes the rest. The
    numbers come from torch's generator in the order of the released code.
    """
    first, *rest = lambdas.shape[1:]
    numbers = torch.rand(first, len(lambdas) + 1, *rest, device=lambdas.device, dtype=lambdas.dtype)
    return halting_distribution((numbers.transpose(0, 1)[:-1] <= lambdas).to(lambdas.dtype))


class ExpectedHead:
    """PonderNet (Banino et al. 2021): the expectation over the pass at which a token halts.

    Cross entropy: sum_r p_r * CE_r over passes r, a mean over tokens; the logits are log sum_r p_r softmax_r.
    In training KL(p || geometric(lambda_p)) is added. p is computed from the representations after the end
    blocks, before the last LayerNorm. The released code weighted other tokens' losses, averaged over passes
    where this sums, took the divergence in the other direction, and evaluated a sampled pass, as `ponder_eval
    = sample` does here.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._lambda_p = config.ponder_lambda_p
        self._weight = config.ponder_kl_div_loss_weight
        self._samples = config.ponder_eval == "sample"
        self._chunked = config.loss == "chunked"

    def __call__(
        self,
        model: "LanguageModel",
        exits: Sequence[Tensor],
        targets: Tensor | None,
        training: bool,
        get_logits: bool,
        get_predictions: bool = False,
    ) -> Scores:
        p = self._halting(model, exits, training)
        numbers = torch.arange(1, len(exits) + 1, device=p.device, dtype=p.dtype)
        passes = torch.tensordot(numbers, p.detach(), 1).mean()
        exits = [model.transformer.ln_f(x) for x in exits]
        logits = predictions = None
        if targets is not None and self._chunked and not get_logits:
            total = None
            if get_predictions:
                total, predictions = _expected(p, exits, model.lm_head, targets)
            if total is None or torch.is_grad_enabled():
                # One call for all exits: one gradient of the weight instead of one per exit.
                x = torch.cat([x.flatten(0, -2) for x in exits])
                every = targets.flatten().repeat(len(exits))
                total, *_ = linear_cross_entropy(x, model.lm_head.weight, every, p.flatten())
        else:
            by_pass = [exact(model.lm_head(x)) for x in exits]
            if get_logits or get_predictions:
                logits = _mixed(p, by_pass)
                predictions = logits.argmax(-1) if get_predictions else None
            if targets is None:
                return Scores(logits, None, None, passes, predictions)
            costs = (
                part * cross_entropy(logits.flatten(0, -2), targets.flatten(), "none").view_as(part)
                for part, logits in zip(p, by_pass, strict=True)
            )
            total = sum(costs, p.new_zeros(())).sum()
        expected = total / (targets != IGNORED).sum()
        loss = expected
        if training:
            loss = loss + self._weight * ponder_divergence(p, self._lambda_p).mean()
        return Scores(logits, loss, expected, passes, predictions)

    def _halting(self, model: "LanguageModel", exits: Sequence[Tensor], training: bool) -> Tensor:
        """The probability of each exit: p (R, B, T), in float32 at least."""
        heads = zip(model.to_halt_logits, exits[:-1], strict=True)
        lambdas = [exact(head(x)).squeeze(-1).sigmoid() for head, x in heads]
        if not lambdas:  # a single pass
            return torch.ones_like(exact(exits[0][..., 0]))[None]
        distribution = sampled_exits if self._samples and not training else halting_distribution
        return distribution(torch.stack(lambdas))


@torch.no_grad()
def _expected(p: Tensor, exits: Sequence[Tensor], head: nn.Linear, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over passes and tokens of p_r * CE_r, and the mixture's most likely ids (B, T), in chunks.

    p (R, B, T), exits R times (B, T, C), targets (B, T).
    """
    flat, each, total, parts = [x.flatten(0, -2) for x in exits], targets.flatten(), p.new_zeros(()), []
    step = chunk_tokens(head.out_features, p.device, product_dtype(flat[0], head.weight))
    for start in range(0, len(each), step):
        part, mixture = slice(start, start + step), p.new_zeros(())
        for chance, x in zip(p.flatten(1)[:, part], flat, strict=True):
            logs = exact(head(x[part])).log_softmax(-1)
            nats = F.nll_loss(logs, each[part], ignore_index=IGNORED, reduction="none")
            total += (chance * nats).sum()
            mixture = mixture + chance[:, None] * logs.exp_()
        parts.append(mixture.argmax(-1))
    return total, torch.cat(parts).view(targets.shape)


def _mixed(p: Tensor, by_pass: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of the expectation: log sum_r p_r softmax_r, of p (R, ...) and R times (..., V)."""
    return torch.stack(
        [part.log() + logits.log_softmax(-1) for part, logits in zip(p[..., None], by_pass, strict=True)]
    ).logsumexp(0)

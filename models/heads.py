"""Heads: from representations to logits, predictions and loss; of the last pass, or expected over passes.

Shapes: B batch, T tokens, C = n_embd, V = vocab_size, R = n_repeat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.halting import halting_distribution, ponder_divergence, sampled_exits
from models.losses import IGNORED, chunk_tokens, cross_entropy, exact, linear_cross_entropy, product_dtype


class Scores(NamedTuple):
    """The output of a head.

    logits: (..., V), or None where they were not needed.
    loss, cross_entropy: scalars in nats per token; None without targets.
    passes: expected passes through the middle, a mean over tokens; None where the head is the last pass's.
    predictions: the most likely ids, or None.
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    passes: Tensor | None = None
    predictions: Tensor | None = None


class LastPassHead:
    """Cross entropy of the predictions after the last block, a mean over the targets that count."""

    def __init__(self, config: ModelConfig) -> None:
        self._chunked = config.loss == "chunked"

    def __call__(
        self,
        model: nn.Module,
        exits: Sequence[Tensor],
        targets: Tensor | None,
        training: bool,
        get_logits: bool,
        get_predictions: bool = False,
    ) -> Scores:
        (x,) = exits
        x = model.transformer.ln_f(x)
        if self._chunked and not get_logits:
            total, _, predictions = linear_cross_entropy(
                x.flatten(0, -2), model.lm_head.weight, targets.flatten(), predict=get_predictions
            )
            loss = total / (targets != IGNORED).sum()
            if predictions is not None:
                predictions = predictions.view_as(targets)
            return Scores(None, loss, loss, predictions=predictions)
        logits = model.lm_head(x)
        predictions = logits.argmax(-1) if get_predictions else None
        if targets is None:
            return Scores(logits, None, None, predictions=predictions)
        loss = cross_entropy(logits.flatten(0, -2), targets.flatten())
        return Scores(logits, loss, loss, predictions=predictions)


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
        model: nn.Module,
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
        if self._chunked and not get_logits:
            if get_predictions:
                total, predictions = _expected(p, exits, model.lm_head, targets)
            if torch.is_grad_enabled() or not get_predictions:
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
            total = sum(
                part * cross_entropy(logits.flatten(0, -2), targets.flatten(), "none").view_as(part)
                for part, logits in zip(p, by_pass, strict=True)
            ).sum()
        expected = total / (targets != IGNORED).sum()
        loss = expected
        if training:
            loss = loss + self._weight * ponder_divergence(p, self._lambda_p).mean()
        return Scores(logits, loss, expected, passes, predictions)

    def _halting(self, model: nn.Module, exits: Sequence[Tensor], training: bool) -> Tensor:
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
        part, mixture = slice(start, start + step), 0.0
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

"""From representations to predictions and losses: one exit, or PonderNet's expectation over all of them.

Shapes: B batch, T tokens, C = n_embd, V = vocab_size, R = n_repeat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.halting import halting_distribution, ponder_divergence, sampled_exits

IGNORED = -1  # a target that no loss counts


class Scored(NamedTuple):
    """logits (*, V). loss, cross_entropy: scalars in nats per token, None without targets.

    passes: passes through the middle until the exit, averaged over tokens; None where the exit is the last.
    """

    logits: Tensor
    loss: Tensor | None
    cross_entropy: Tensor | None
    passes: Tensor | None = None


class LastExit:
    """Cross entropy of the predictions after the last block."""

    def __call__(
        self, model: nn.Module, exits: Sequence[Tensor], targets: Tensor | None, training: bool
    ) -> Scored:
        (x,) = exits
        logits = model.lm_head(model.transformer.ln_f(x))
        if targets is None:
            return Scored(logits, None, None)
        loss = F.cross_entropy(_exact(logits).flatten(0, -2), targets.flatten(), ignore_index=IGNORED)
        return Scored(logits, loss, loss)


class ExpectedExit:
    """PonderNet (Banino et al. 2021): the expectation over the pass that a token halts at.

    Cross entropy: sum over passes r of p_r * CE_r, a mean over tokens; the logits are log sum_r p_r
    softmax_r. In training KL(p || geometric(lambda_p)) is added. p comes from the representations after the
    end blocks, before the last LayerNorm. The released code weighted other tokens' losses, averaged over
    passes where this sums, took the divergence the other way round, and evaluated by sampling; `ponder_eval =
    sample` does the last, exiting at one drawn pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._lambda_p = config.ponder_lambda_p
        self._weight = config.ponder_kl_div_loss_weight
        self._samples = config.ponder_eval == "sample"

    def __call__(
        self, model: nn.Module, exits: Sequence[Tensor], targets: Tensor | None, training: bool
    ) -> Scored:
        halting = zip(model.to_halt_logits, exits[:-1], strict=True)
        lambdas = [_exact(head(x)).squeeze(-1).sigmoid() for head, x in halting]
        if not lambdas:  # a single pass leaves nothing to decide
            p = torch.ones_like(_exact(exits[0][..., 0]))[None]
        else:
            choose = sampled_exits if self._samples and not training else halting_distribution
            p = choose(torch.stack(lambdas))
        by_pass = [_exact(model.lm_head(model.transformer.ln_f(x))) for x in exits]
        logits = torch.stack(
            [part.log() + logits.log_softmax(-1) for part, logits in zip(p[..., None], by_pass, strict=True)]
        ).logsumexp(0)
        numbers = torch.arange(1, len(exits) + 1, device=p.device, dtype=p.dtype)
        passes = torch.tensordot(numbers, p.detach(), 1).mean()
        if targets is None:
            return Scored(logits, None, None, passes)
        counted = (targets != IGNORED).view(p.shape[1:])
        cross_entropy = sum(
            part * F.cross_entropy(
                logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none"
            ).view_as(part)
            for part, logits in zip(p, by_pass, strict=True)
        )  # fmt: skip
        cross_entropy = cross_entropy.sum() / counted.sum()
        loss = cross_entropy
        if training:
            loss = loss + self._weight * ponder_divergence(p, self._lambda_p).mean()
        return Scored(logits, loss, cross_entropy, passes)


def _exact(x: Tensor) -> Tensor:
    """In float32 at least: losses and probabilities are not made in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

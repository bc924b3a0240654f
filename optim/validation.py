"""Loss, perplexity and accuracy over a set of batches, with their interval.

Shapes: B batch, T tokens.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from data.batches import EvaluationBatches
from data.windows import Batch
from distributed import Precision, Processes
from errors import Failure
from models.heads import IGNORED


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Losses are in nats per token; tokens_per_pass are those of a sequence.

    batch_tokens: those that the loss counts. exact_sequences: all of whose tokens were the first choice.
    batch_seconds: wall-clock of the forward passes.
    """

    batch_losses: list[float]
    batch_tokens: list[int]
    correct_tokens: int
    average_depth: float
    tokens_per_pass: list[float] = field(default_factory=list)
    batch_seconds: list[float] = field(default_factory=list)
    batch_sequences: list[int] = field(default_factory=list)
    exact_sequences: int = 0

    @property
    def seconds_per_token(self) -> float:
        """The median over batches: the first one warms up, and others may be disturbed."""
        pairs = zip(self.batch_seconds, self.batch_tokens, strict=True)
        return statistics.median(seconds / tokens for seconds, tokens in pairs)

    @property
    def tokens(self) -> int:
        return sum(self.batch_tokens)

    @property
    def loss(self) -> float:
        """The mean over tokens, also where the last batch is smaller than the others."""
        weighted = zip(self.batch_losses, self.batch_tokens, strict=True)
        return math.fsum(loss * tokens for loss, tokens in weighted) / self.tokens

    @property
    def perplexity(self) -> float:
        return to_perplexity(self.loss)

    @property
    def accuracy(self) -> float:
        """Fraction of tokens that were the model's first choice."""
        return self.correct_tokens / self.tokens

    @property
    def sequence_accuracy(self) -> float:
        """Fraction of sequences without a single wrong token."""
        return self.exact_sequences / sum(self.batch_sequences)

    @property
    def loss_standard_error(self) -> float | None:
        """Of the mean loss, from the spread over batches of full size; None with fewer than two of them."""
        sizes = self.batch_sequences or self.batch_tokens
        full = [loss for loss, size in zip(self.batch_losses, sizes, strict=True) if size == max(sizes)]
        return statistics.stdev(full) / math.sqrt(len(full)) if len(full) > 1 else None

    @property
    def loss_interval(self) -> list[float] | None:
        """The 95 % interval over batches, loss +- 1.96 standard errors; it says nothing about other seeds."""
        if self.loss_standard_error is None:
            return None
        margin = 1.96 * self.loss_standard_error
        return [self.loss - margin, self.loss + margin]

    @property
    def perplexity_interval(self) -> list[float] | None:
        """The interval of the loss, exponentiated."""
        return self.loss_interval and [to_perplexity(bound) for bound in self.loss_interval]


def to_perplexity(loss: float) -> float:
    """exp(loss in nats per token)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class _Scored(NamedTuple):
    """What is kept of a batch: sums over its tokens, or its sequences."""

    index: int
    loss: float
    tokens: int
    correct: int
    sequences: int
    exact: int
    depth: float
    tokens_per_pass: list[float]
    seconds: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: EvaluationBatches | Iterable[Batch],
    precision: Precision,
    processes: Processes | None = None,
    stop: Callable[[], bool] = lambda: False,
    **routing: Any,
) -> Evaluation | None:
    """Score `model` on batches of (inputs, targets), each (B, T). The training mode is left as it was found.

    processes: who share the batches among them; each gets the whole result, the same for any number of them.
    stop: asked after each batch; where it says so, the result is None. routing: `length_factors` or
    `thresholds` for the model's forward pass; none: what its flags say. Raises Failure when a loss is not
    finite, or there is no batch.
    """
    alone = processes is None or processes.size == 1
    numbered = enumerate(batches) if alone else batches.share(processes.rank, processes.size)
    scored: list[_Scored] = []
    was_training = model.training
    model.eval()
    try:
        for index, batch in numbered:
            found = _score(index, model, batch, precision, routing)
            if alone or index < len(batches):
                scored.append(found)
            if stop():
                return None
    finally:
        model.train(was_training)
    if not alone:
        scored = sorted(found for part in processes.gather(scored) for found in part)
    return _summed(scored)


def _score(
    index: int, model: nn.Module, batch: Batch, precision: Precision, routing: dict[str, Any]
) -> _Scored:
    inputs, targets = (tensor.to(precision.device) for tensor in batch)
    started = time.perf_counter()
    with precision.autocast():
        output = model(inputs, targets, get_predictions=True, **routing)
    loss = output["cross_entropy_loss"].item()
    seconds = time.perf_counter() - started
    counted = targets != IGNORED
    right = output["predictions"] == targets
    return _Scored(
        index, loss, counted.sum().item(), (right & counted).sum().item(),
        len(targets), (right | ~counted).all(-1).sum().item(),
        float(output["average_depth"]) * len(targets),
        [float(tokens) * len(targets) for tokens in output["tokens_per_pass"]],
        seconds,
    )  # fmt: skip


def _summed(scored: list[_Scored]) -> Evaluation:
    if not scored:
        raise Failure("there is nothing to evaluate on: no batch came from the data")
    losses = [found.loss for found in scored]
    if not all(map(math.isfinite, losses)):
        raise Failure(
            f"the model gives a loss of {next(x for x in losses if not math.isfinite(x))} on real text"
        )
    sequences = [found.sequences for found in scored]
    total = sum(sequences)
    passes = zip(*(found.tokens_per_pass for found in scored), strict=True)
    return Evaluation(
        batch_losses=losses,
        batch_tokens=[found.tokens for found in scored],
        correct_tokens=sum(found.correct for found in scored),
        average_depth=sum(found.depth for found in scored) / total,
        tokens_per_pass=[sum(counts) / total for counts in passes],
        batch_seconds=[found.seconds for found in scored],
        batch_sequences=sequences,
        exact_sequences=sum(found.exact for found in scored),
    )

"""Validation: loss, perplexity and accuracy over batches, with confidence intervals; and during training.

Shapes: B batch, T tokens.
"""

import contextlib
import logging
import math
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from config.training import TrainConfig
from data import Corpus
from data.batches import Batch, EvaluationBatches, contiguous_batches, validation_subset
from data.tokenizers import Tokenizer, decode, prompt_ids
from distributed import Precision, Processes
from distributed.parallel import SingleProcess
from errors import Failure
from models.generation import generate
from models.losses import IGNORED
from optim.train import derive_seed, seed_torch

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 64
INTERMEDIATE_BATCHES = 24


@dataclass(frozen=True)
class Evaluation:
    """Results over a set of batches, and sums per batch.

    Losses are in nats per token. batch_tokens: the tokens that the loss counts. average_depth: blocks per
    token. tokens_per_pass: active tokens of a sequence in each pass. batch_seconds: wall-clock time of the
    forward passes. exact_sequences: sequences whose tokens are all predicted correctly.
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
        """The median over batches, as the first one warms up and others may be disturbed."""
        pairs = zip(self.batch_seconds, self.batch_tokens, strict=True)
        return statistics.median(seconds / tokens for seconds, tokens in pairs if tokens)

    @property
    def tokens(self) -> int:
        return sum(self.batch_tokens)

    @property
    def loss(self) -> float:
        """The mean over tokens, also if the last batch is smaller."""
        weighted = zip(self.batch_losses, self.batch_tokens, strict=True)
        return math.fsum(loss * tokens for loss, tokens in weighted) / self.tokens

    @property
    def perplexity(self) -> float:
        return to_perplexity(self.loss)

    @property
    def accuracy(self) -> float:
        """The fraction of tokens that have the highest logit."""
        return self.correct_tokens / self.tokens

    @property
    def sequence_accuracy(self) -> float:
        """The fraction of sequences without a wrong token."""
        return self.exact_sequences / sum(self.batch_sequences)

    @property
    def loss_standard_error(self) -> float | None:
        """Standard error of the mean loss over full-size batches; None with fewer than two of them."""
        sizes = self.batch_sequences or self.batch_tokens
        full = [loss for loss, size in zip(self.batch_losses, sizes, strict=True) if size == max(sizes)]
        return statistics.stdev(full) / math.sqrt(len(full)) if len(full) > 1 else None

    @property
    def loss_interval(self) -> list[float] | None:
        """The 95 % interval over batches, loss +- 1.96 standard errors. It does not cover other seeds."""
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


class _BatchResult(NamedTuple):
    """Sums over a batch's tokens or sequences; loss is their mean."""

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
    """Evaluate `model` on batches of (inputs, targets), each (B, T); its training mode is restored.

    Args:
        processes: the ranks that split the batches; all get the same result, for any number of them.
        stop: asked after each batch; True makes the result None.
        routing: `length_factors` or `thresholds` of the model's forward pass; by default those of its flags.

    Raises Failure when a loss is not finite, or there is no batch.
    """
    single = processes is None or processes.size == 1
    numbered = enumerate(batches) if single else batches.share(processes.rank, processes.size)
    # Weights of a sharded model come from all ranks, over NCCL on GPUs.
    over_nccl = not single and precision.device.type == "cuda"
    waiting = processes.waiting if over_nccl else contextlib.nullcontext
    results: list[_BatchResult] = []
    was_training = model.training
    model.eval()
    try:
        for index, batch in numbered:
            with waiting():
                result = _evaluate_batch(index, model, batch, precision, routing)
            if single or index < len(batches):
                results.append(result)
            if stop():
                return None
    finally:
        model.train(was_training)
    if not single:
        results = sorted(result for part in processes.gather(results) for result in part)
    return _aggregate(results)


def _evaluate_batch(
    index: int, model: nn.Module, batch: Batch, precision: Precision, routing: dict[str, Any]
) -> _BatchResult:
    device = precision.device
    inputs, targets = (tensor.to(device) for tensor in batch)
    # Drawn exits (--ponder_eval sample) depend on the batch, not on the rank or what was drawn before.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_torch(0, "validation", micro_batch=index)
        started = time.perf_counter()
        with precision.autocast():
            output = model(inputs, targets, get_predictions=True, **routing)
        loss = output["cross_entropy_loss"].item()
        seconds = time.perf_counter() - started
    counted = targets != IGNORED
    tokens = counted.sum().item()
    correct = output["predictions"] == targets
    return _BatchResult(
        index, loss if tokens else 0.0, tokens, (correct & counted).sum().item(),
        len(targets), (correct | ~counted).all(-1).sum().item(),
        float(output["average_depth"]) * len(targets),
        [float(tokens) * len(targets) for tokens in output["tokens_per_pass"]],
        seconds,
    )  # fmt: skip


def _aggregate(results: list[_BatchResult]) -> Evaluation:
    if not results:
        raise Failure("there is nothing to evaluate on: the data has no batch")
    losses = [result.loss for result in results]
    if not all(map(math.isfinite, losses)):
        raise Failure(
            f"the model gives a loss of {next(x for x in losses if not math.isfinite(x))} on real text"
        )
    sequences = [result.sequences for result in results]
    total = sum(sequences)
    passes = zip(*(result.tokens_per_pass for result in results), strict=True)
    return Evaluation(
        batch_losses=losses,
        batch_tokens=[result.tokens for result in results],
        correct_tokens=sum(result.correct for result in results),
        average_depth=sum(result.depth for result in results) / total,
        tokens_per_pass=[sum(counts) / total for counts in passes],
        batch_seconds=[result.seconds for result in results],
        batch_sequences=sequences,
        exact_sequences=sum(result.exact for result in results),
    )


class Validation:
    """Validation during training: 24 batches, at the end the full set; and a sample of text."""

    def __init__(
        self,
        args: Namespace,
        config: TrainConfig,
        corpus: Corpus,
        precision: Precision,
        parallel: SingleProcess,
    ) -> None:
        self._config, self._corpus, self._precision, self._parallel = config, corpus, precision, parallel
        self._vocab_size, self._prefix = args.vocab_size, args.eval_seq_prefix
        self._tokenizer, self._prefix_ids = self._sample_start()

    def __call__(self, model: nn.Module, step: int, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Evaluate after `step` updates, on all ranks.

        Returns the entries for the step's line of metrics.jsonl, or None if `stop` asked to stop.
        """
        config, processes = self._config, self._parallel.processes
        windows = self._corpus.windows("val", config.sequence_length, self._vocab_size)
        if step == config.iterations:
            batches = contiguous_batches(windows, config.batch_size)
        else:
            seed = derive_seed(config.data_seed, "validation")
            batches = validation_subset(windows, config.batch_size, INTERMEDIATE_BATCHES, seed)
        result = evaluate(model, batches, self._precision, processes, stop)
        if result is None:
            return None
        metrics = {
            "val_loss": result.loss,
            "val_perplexity": result.perplexity,
            "val_perplexity_interval": result.perplexity_interval,
            "val_accuracy": result.accuracy,
            "val_tokens": result.tokens,
            "val_average_depth": result.average_depth,
        }
        # A sharded model is run by all ranks together.
        if self._tokenizer is not None and (processes.is_main or self._parallel.sharded):
            metrics["sample"] = self._prefix + self._continuation(model, step)
        return metrics

    def _continuation(self, model: nn.Module, step: int) -> str:
        """A sample of text after the prefix; a function of the weights, the seed and the step."""
        with self._precision.autocast():
            drawn = generate(
                model,
                [self._prefix_ids],
                SAMPLE_TOKENS,
                n_tokens=self._tokenizer.vocab_size,
                generator=torch.Generator().manual_seed(derive_seed(self._config.seed, "sample", step)),
                temperature=0.8,
                top_k=40,
            )
            return decode(self._tokenizer, (int(one.tokens) for one in drawn), self._prefix_ids)

    def _sample_start(self) -> tuple[Tokenizer | None, list[int]]:
        """The tokeniser and the ids of the prefix; None where no samples are wanted or possible."""
        if self._prefix in (None, "none"):
            return None, []
        try:
            tokenizer = self._corpus.load_tokenizer()
            return tokenizer, prompt_ids(tokenizer, self._prefix)
        except Failure as error:
            logger.info(f"note: no text samples at evaluations: {error}")
            return None, []

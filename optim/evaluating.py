"""Evaluations of a run while it trains, and at its end; each with a text sample."""

import logging
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from config.training import TrainConfig
from data import Corpus
from data.batches import contiguous_batches, validation_subset
from data.tokenizers import decode
from distributed import Precision
from distributed.parallel import SingleProcess
from errors import Failure
from models.generation import generate
from optim.randomness import derive_seed
from optim.validation import Evaluation, evaluate

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 64
EVAL_BATCHES = 24  # of an intermediate evaluation


class Evaluator:
    """24 batches while training goes on, the whole validation set at the end; and a text sample."""

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
        self._tokenizer = self._sample_tokenizer()

    def __call__(self, model: nn.Module, step: int, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """What the line of that step says of it; None where it was stopped. All processes call this."""
        config, processes = self._config, self._parallel.processes
        windows = self._corpus.windows("val", config.sequence_length, self._vocab_size)
        if step == config.iterations:
            batches = contiguous_batches(windows, config.batch_size)
        else:
            seed = derive_seed(config.data_seed, "validation")
            batches = validation_subset(windows, config.batch_size, EVAL_BATCHES, seed)
        found = evaluate(model, batches, self._precision, processes, stop)
        if found is None:
            return None
        result = _line(found)
        # A network that lies in several processes is run by all of them.
        if self._tokenizer is not None and (processes.is_main or self._parallel.sharded):
            result["sample"] = self._prefix + self._continuation(model, step)
        return result

    def _continuation(self, model: nn.Module, step: int) -> str:
        """A sample of text after the prefix; a function of the weights, the seed and the step."""
        start = self._tokenizer.encode(self._prefix).tolist() or [self._tokenizer.end_of_text]
        with self._precision.autocast():
            drawn = generate(
                model,
                [start],
                SAMPLE_TOKENS,
                n_tokens=self._tokenizer.vocab_size,
                generator=torch.Generator().manual_seed(derive_seed(self._config.seed, "sample", step)),
                temperature=0.8,
                top_k=40,
            )
            return decode(self._tokenizer, [int(one.tokens) for one in drawn])

    def _sample_tokenizer(self):
        if self._prefix in (None, "none"):
            return None
        try:
            tokenizer = self._corpus.load_tokenizer()
            if not len(tokenizer.encode(self._prefix)) and tokenizer.end_of_text is None:
                raise Failure("the prefix is empty, and the tokeniser has no end-of-text token to begin with")
        except Failure as error:
            logger.info(f"note: no text samples at evaluations: {error}")
            return None
        return tokenizer


def _line(result: Evaluation) -> dict[str, Any]:
    return {
        "val_loss": result.loss,
        "val_perplexity": result.perplexity,
        "val_perplexity_interval": result.perplexity_interval,
        "val_accuracy": result.accuracy,
        "val_tokens": result.tokens,
        "val_average_depth": result.average_depth,
    }

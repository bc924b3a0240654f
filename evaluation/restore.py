"""A trained model, put together again from its checkpoint: what eval.py and generate.py begin with."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config
import models
from data import Corpus, open_corpus
from data.batches import EvaluationBatches, contiguous_batches
from data.tokenizers import Tokenizer, make_tokenizer, tokenizer_from_meta
from distributed import Precision, choose_device, choose_precision, require_single_process
from errors import Failure, UsageError
from models import pretrained
from models.language_model import LanguageModel
from optim import checkpoint
from optim.state import FORMAT


@dataclass(frozen=True)
class Restored:
    """model: in evaluation mode on its device. args: the run's flags under those given now.

    tokenizer: what the run's corpus said of its tokeniser; None for a checkpoint of the released code.
    step: updates made; None where the file does not tell.
    """

    path: Path
    model: LanguageModel
    args: Namespace
    precision: Precision
    tokenizer: dict[str, Any] | None
    step: int | None

    @property
    def sequence_length(self) -> int:
        """Of evaluation: --eval_seq_length, or that of training."""
        return self.args.eval_seq_length or self.args.sequence_length

    def open_corpus(self) -> Corpus:
        """The corpus of the flags. Raises UsageError when its tokens are not those of the model."""
        corpus = open_corpus_of(self.args, self.sequence_length)
        corpus.require_tokenizer(self.tokenizer, f"the model in {self.path}")
        return corpus

    def batches(self, split: str, corpus: Corpus | None = None) -> EvaluationBatches:
        """All windows of a split in order, or the first --eval_sample_size tokens of them.

        corpus: the opened one; None to open that of the flags.
        """
        corpus = corpus or self.open_corpus()
        windows = corpus.windows(split, self.sequence_length, self.args.vocab_size)
        return contiguous_batches(windows, self.args.batch_size, self.args.eval_sample_size)

    def make_tokenizer(self) -> Tokenizer:
        """The one that the model was trained with. A checkpoint of the released code does not tell: GPT-2's,
        unless --tokenizer says so. Raises UsageError or Failure where it cannot be had."""
        named = self.args.tokenizer
        if self.tokenizer is None:
            return make_tokenizer(named or "gpt2")
        elsewhere = Path(named) if named and named.endswith(".json") else None
        return tokenizer_from_meta(self.tokenizer, elsewhere)

    def describe(self) -> str:
        """Which checkpoint this is, and how it is computed: one line."""
        return f"{self.path} (step {self.step}), {self.precision.device}, {self.precision.reason}"


def restore(path: Path, given: dict[str, Any]) -> Restored:
    """Load the checkpoint `path` (a file, a run's folder: its most advanced one, or an exported model).

    given: flags of the command line, which override those of the run. Reads our checkpoints and those of the
    released code, whose flags stand in the summary.json beside them, or are given.
    Raises UsageError when flags and weights do not fit together, Failure for a damaged file.
    """
    require_single_process()
    path, content = _read(path)
    ours = content.get("format") == FORMAT
    args = config.complete(content["args"] if ours else _summary_args(path, given), given)
    model = models.make_model_from_args(args)
    weights = content.get("model", content)  # a file may hold the weights alone
    _load_weights(model, models.import_original_state_dict(weights, args), path)
    precision = choose_precision(args.dtype, choose_device(args.device))
    return Restored(
        path=path,
        model=model.to(precision.device).eval(),
        args=args,
        precision=precision,
        tokenizer=content.get("tokenizer") if ours else None,
        step=content.get("step", content.get("itr")),
    )


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is meant, and its content; an exported model's in the form of a checkpoint's."""
    if not pretrained.is_pretrained(path):
        path = checkpoint.find(path)
        return path, checkpoint.load(path)
    about, weights = pretrained.read(path)
    if not isinstance(about.get("args"), dict):
        raise Failure(f"{path / pretrained.CONFIG} is damaged: it has no args")
    # Files about it are named after the folder, which may be given as ".".
    return path.resolve(), {**about, "format": FORMAT, "model": weights}


def open_corpus_of(args: Namespace, sequence_length: int, say: Callable[[str], None] = print) -> Corpus:
    """The corpus that the flags name, prepared on first use. Raises UsageError, or Failure for damage."""
    return open_corpus(
        args.dataset,
        data_dir=args.data_dir,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        sequence_length=sequence_length,
        in_ram=args.data_in_ram,
        log=say,
    )


def _summary_args(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    summary = path.parent / "summary.json"
    if summary.exists():
        try:
            args = json.loads(summary.read_text(encoding="utf-8"))["args"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{summary} is not the summary of a run: it has no args") from error
        # The folders of another machine say nothing about this one.
        return {name: value for name, value in args.items() if name != "data_dir"}
    if "model" not in given:
        raise UsageError(
            f"{path} does not tell its flags and there is no summary.json beside it; "
            "give --model, --n_layer, --n_embd and the others it was trained with"
        )
    return {}


def _load_weights(model: LanguageModel, weights: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UsageError(
            f"the weights in {path} do not fit --model {model.config.model} of these sizes: {first}"
        ) from error

"""Restores a trained model from its checkpoint, or from an exported folder."""

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config
import models
from config.base import all_flags
from data import Corpus, open_corpus_from_args
from data.batches import EvaluationBatches, contiguous_batches
from data.corpora import is_local
from data.tokenizers import NAMES, Tokenizer, make_tokenizer, tokenizer_from_meta
from distributed import Precision, choose_device, choose_precision, require_single_process
from errors import Failure, UsageError
from files import read_json
from flags import Identity
from models import pretrained
from models.config import MODEL_FLAGS
from models.language_model import LanguageModel
from models.variants import find_variant
from optim import checkpoint
from optim.state import FORMAT


@dataclass(frozen=True)
class Restored:
    """A trained model on its device, in evaluation mode.

    args: the flags of its training, overridden by the flags given now. tokenizer: describes its tokeniser;
    None for checkpoints of the released code. step: updates made; None if the file does not hold it.
    replaced: the flags given now that evaluate something else than the run's own flags do.
    """

    path: Path
    model: LanguageModel
    args: Namespace
    precision: Precision
    tokenizer: dict[str, Any] | None
    step: int | None
    replaced: dict[str, Any] = field(default_factory=dict)

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence in evaluations: --eval_seq_length, by default that of training."""
        return self.args.eval_seq_length or self.args.sequence_length

    def open_corpus(self) -> Corpus:
        """Returns the corpus of the flags, prepared on first use; local files in the model's tokens.

        Raises:
            UsageError: its tokens are not those of the model.
            Failure: it is damaged or cannot be prepared.
        """
        args, own = Namespace(**vars(self.args)), (self.tokenizer or {}).get("name")
        if args.tokenizer is None and own in NAMES and is_local(args.dataset):
            args.tokenizer = own
        corpus = open_corpus_from_args(args, self.sequence_length)
        corpus.require_tokenizer(self.tokenizer, f"the model in {self.path}")
        return corpus

    def batches(self, split: str, corpus: Corpus | None = None) -> EvaluationBatches:
        """Returns all windows of a split in order, or the first --eval_sample_size tokens of them.

        Args:
            corpus: None: that of the flags is opened.
        """
        corpus = corpus or self.open_corpus()
        windows = corpus.windows(split, self.sequence_length, self.args.vocab_size)
        return contiguous_batches(windows, self.args.batch_size, self.args.eval_sample_size)

    def make_tokenizer(self) -> Tokenizer:
        """Returns the tokeniser that the model was trained with.

        Checkpoints of the released code do not name it: --tokenizer does, by default GPT-2's.

        Raises:
            UsageError, Failure: it cannot be had.
        """
        named = self.args.tokenizer
        if self.tokenizer is None:
            return make_tokenizer(named or "gpt2")
        elsewhere = Path(named) if named and named.endswith(".json") else None
        return tokenizer_from_meta(self.tokenizer, elsewhere)

    def describe(self) -> str:
        """Returns one line: checkpoint, device and arithmetic."""
        return f"{self.path} (step {self.step}), {self.precision.device}, {self.precision.reason}"


def restore(path: Path, given: dict[str, Any]) -> Restored:
    """Load a trained model, of ours or of the released code.

    Args:
        path: a checkpoint file, a run's folder (its most advanced checkpoint is loaded) or an exported model.
        given: flags of the command line, which override those of the training. Flags of a checkpoint of the
            released code come from the summary.json next to it, or are given.

    Raises:
        UsageError: there is no checkpoint, or flags and weights do not fit together.
        Failure: a file is damaged.
    """
    require_single_process()
    path, content = _read(path)
    ours = content.get("format") == FORMAT
    own_args = content["args"] if ours else _summary_args(path, given)
    args = config.complete(own_args, given)
    model = models.make_model_from_args(args)
    carried = path / pretrained.TOKENIZER  # of an exported model
    if "tokenizer" not in given and carried.is_file():
        args.tokenizer = str(carried)
    weights = content.get("model", content)  # a file may hold the weights alone
    _load_weights(model, models.import_original_state_dict(weights, args), path)
    device = choose_device(args.device, args.deterministic, args.tf32)
    precision = choose_precision(args.dtype, device)
    return Restored(
        path=path,
        model=model.to(precision.device).eval(),
        args=args,
        precision=precision,
        tokenizer=content.get("tokenizer") if ours else None,
        step=content.get("step", content.get("itr")),
        replaced=_replaced(own_args, args, given),
    )


def _replaced(own_args: dict[str, Any], args: Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """The flags given now, with other values than the run's, that change what is evaluated.

    Not those of how it is computed (device, batch size, arithmetic). Without flags of the run, those given
    describe it, and only settings of evaluations replace anything.
    """
    found = {}
    network = {one.name for one in MODEL_FLAGS if one.identity is not Identity.NEVER or one.read_by}
    features = (None, *find_variant(args.model).features)
    for one in all_flags():
        if one.name not in given or one.read_by not in features:
            continue
        if one.name in network or one.name in ("dataset", "eval_seq_length", "eval_sample_size"):
            value = getattr(args, one.name)
            default = one.default if one.identity is Identity.NEVER and one.name != "dataset" else value
            own = own_args.get(one.name, default)
            if one.name == "model":
                own = find_variant(own).name
            if value != own:
                found[one.name] = value
    return found


def run_flags(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The flags that a checkpoint or an exported model was trained with. given, raises: as for `restore`."""
    path, content = _read(path)
    return content["args"] if content.get("format") == FORMAT else _summary_args(path, given)


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the checkpoint's path and content; an exported model's in the form of a checkpoint."""
    if not pretrained.is_pretrained(path):
        path = checkpoint.find(path)
        return path, checkpoint.load(path)
    about, weights = pretrained.read(path)
    if not isinstance(about.get("args"), dict):
        raise Failure(f"{path / pretrained.CONFIG} is damaged: it has no args")
    # Files about it are named after the folder, which may be given as ".".
    return path.resolve(), {**about, "format": FORMAT, "model": weights}


def _summary_args(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    summary = path.parent / "summary.json"
    if summary.exists():
        try:
            args = read_json(summary)["args"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{summary} is not the summary of a run: it has no args") from error
        # Folders of another machine do not exist on this one.
        return {name: value for name, value in args.items() if name != "data_dir"}
    if "model" not in given:
        raise UsageError(
            f"{path} does not hold its flags and there is no summary.json next to it; "
            "give --model, --n_layer, --n_embd and the others it was trained with"
        )
    return {}


def _load_weights(model: LanguageModel, weights: dict[str, Any], path: Path) -> None:
    pretrained.require_floats(weights, path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UsageError(
            f"the weights in {path} do not fit --model {model.config.model} of these sizes: {first}"
        ) from error

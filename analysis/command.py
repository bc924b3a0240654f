"""What the commands share: flags, the model and its text, where files go. No torch before flags are read."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from errors import UsageError
from models.variants import find_variant

if TYPE_CHECKING:
    from data import Corpus
    from data.batches import EvaluationBatches
    from evaluation.restore import Restored

KNOWN = ("base", "but", "cotformer", "ln_cotformer", "adm", "adaptive_but")
# Keys of `models.language_model.REPEATERS`.
FIXED = ("once", "universal", "cross_repeat")
ROUTED = ("mixture_of_repeats", "routed_universal")
ACROSS_REPEATS = ("cross_repeat", "mixture_of_repeats")


def add_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """Those of every analysis. name: of the module, for the help."""
    parser.prog = f"-m analysis.{name}"
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    add("--split", choices=("val", "train"), default="val", help="of the corpus (default: val)")
    add("--output_dir", type=Path, help="where the files go; default: beside the checkpoint")


@dataclass(frozen=True)
class Analysis:
    """A restored model, the text it is run on, and where what is found goes."""

    name: str
    run: "Restored"
    corpus: "Corpus"
    split: str
    folder: Path

    @property
    def batches(self) -> "EvaluationBatches":
        return self.run.batches(self.split, self.corpus)

    def path(self, ending: str) -> Path:
        """<name>_<checkpoint><ending> in the folder."""
        return self.folder / f"{self.name}_{self.run.path.stem}{ending}"

    def about(self, **more: Any) -> dict[str, Any]:
        """What the numbers depend on: the head of a .json."""
        run = self.run
        return {
            "checkpoint": str(run.path),
            "step": run.step,
            "model": run.args.model,
            "dataset": run.args.dataset,
            "split": self.split,
            "sequence_length": run.sequence_length,
            "tokens": self.batches.windows * run.sequence_length,
            "arithmetic": run.precision.reason,
            **more,
        }


def begin(
    own: Namespace,
    given: dict[str, Any],
    name: str,
    repeaters: tuple[str, ...] = FIXED + ROUTED,
    attentions: tuple[str, ...] = ("mha",),
    command: str | None = None,
) -> Analysis:
    """Load the model that the flags name and open its text; say so.

    name: of the files. repeaters, attentions: the kinds that will do. command: what refuses the others; None:
    analysis.<name>. Raises UsageError where the model will not do.
    """
    from evaluation.restore import restore

    folder = own.output_dir
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder} is a file; give a folder")
    run = restore(Path(own.checkpoint), given)
    require_possible(run, command or f"analysis.{name}", repeaters, attentions)
    corpus = run.open_corpus()
    print(f"{run.describe()}, on {own.split} of {run.args.dataset}")
    return Analysis(name, run, corpus, own.split, folder or run.path.parent)


def require_possible(
    run: "Restored", command: str, repeaters: tuple[str, ...], attentions: tuple[str, ...]
) -> None:
    """Raises UsageError for a model that the command knows nothing to say about."""
    cfg = run.model.config
    if cfg.variant.attention not in attentions:
        raise UsageError(
            f"{run.path} is a {cfg.variant.paper_name}, whose cache is of latents already; "
            f"{command} is for multi-head attention"
        )
    if cfg.variant.repeater not in repeaters:
        known = ", ".join(alias for alias in KNOWN if find_variant(alias).repeater in repeaters)
        raise UsageError(f"{run.path} is a {cfg.variant.paper_name}; {command} is for checkpoints of {known}")
    if set(repeaters) <= set(ROUTED) and cfg.n_repeat == 1:
        raise UsageError(f"{run.path} takes a single pass, so there is nobody to go deeper: it has no router")


def watched(items: Iterable[Any], what: str, unit: str = "batch") -> Iterable[Any]:
    """The items, with a bar that estimates the time left where a terminal shows it."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, disable=not sys.stderr.isatty())


def parse(flags: Any, description: str | None) -> tuple[Namespace, dict[str, Any]]:
    """The command's own flags, and the run's that were given. flags: the function that adds the former."""
    return config.parse_with_run(None, flags, description)

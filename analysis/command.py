"""Shared by the analysis commands: flags, the restored model and its text, file names. Imports no torch."""

import argparse
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from errors import UsageError
from models.variants import Variant, find_variant

if TYPE_CHECKING:
    from data import Corpus
    from data.batches import EvaluationBatches
    from evaluation.restore import Restored

KNOWN = ("base", "but", "cotformer", "ln_cotformer", "adm", "adaptive_but")


def runs_to_a_given_depth(variant: Variant) -> bool:
    """Whether depth is fixed or routed, not a distribution over passes (stick breaking, PonderNet)."""
    return not (variant.has_halting_gate or variant.predicts_every_pass)


def is_routed(variant: Variant) -> bool:
    return variant.routed


def sees_all_passes(variant: Variant) -> bool:
    return variant.sees_all_passes


def add_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the flags of every analysis. name: the module's name, for the help."""
    parser.prog = f"-m analysis.{name}"
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    add("--split", choices=("val", "train"), default="val", help="of the corpus (default: val)")
    add("--output_dir", type=Path, help="where files are written (default: next to the checkpoint)")


@dataclass(frozen=True)
class Analysis:
    """A restored model, its text, and the folder of the results (None: the checkpoint's)."""

    name: str
    run: "Restored"
    corpus: "Corpus"
    split: str
    output_dir: Path | None

    @property
    def batches(self) -> "EvaluationBatches":
        return self.run.batches(self.split, self.corpus)

    def path(self, ending: str) -> Path:
        """<folder>/<name>_<checkpoint><ending>, with the split and flags that differ from the run's."""
        from evaluation.reports import result_path

        split = None if self.split == "val" else self.split
        return result_path(self.name, self.run, self.output_dir, ending, split=split)

    def about(self, **more: Any) -> dict[str, Any]:
        """The first entries of a .json: checkpoint, data and arithmetic, then `more`."""
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
    supports: Callable[[Variant], bool] = runs_to_a_given_depth,
    attentions: tuple[str, ...] = ("mha",),
    command: str | None = None,
) -> Analysis:
    """Restore the model that the flags name, open its text, and print one line about both.

    Args:
        own, given: from `parse`.
        name: the first part of the names of files.
        supports, attentions: the variants, and the kinds of attention, that the command is for.
        command: its name in error messages; None: analysis.<name>.

    Raises:
        UsageError: the command does not support the model.
    """
    from evaluation.reports import check_place
    from evaluation.restore import restore

    folder = own.output_dir
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder} is a file; give a folder")
    run = restore(Path(own.checkpoint), given)
    require_possible(run, command or f"analysis.{name}", supports, attentions)
    corpus = run.open_corpus()
    analysis = Analysis(name, run, corpus, own.split, folder)
    check_place(analysis.path(""), folder)
    print(f"{run.describe()}, on {own.split} of {run.args.dataset}")
    return analysis


def require_possible(
    run: "Restored", command: str, supports: Callable[[Variant], bool], attentions: tuple[str, ...]
) -> None:
    """Raises UsageError for a model that the command does not support."""
    cfg = run.model.config
    if cfg.variant.attention not in attentions:
        raise UsageError(
            f"{run.path} is a {cfg.variant.paper_name}, whose cache holds latents already; "
            f"{command} is for multi-head attention"
        )
    if not supports(cfg.variant):
        known = ", ".join(alias for alias in KNOWN if supports(find_variant(alias)))
        raise UsageError(f"{run.path} is a {cfg.variant.paper_name}; {command} is for checkpoints of {known}")
    if supports is is_routed and cfg.n_repeat == 1:
        raise UsageError(
            f"{run.path} takes a single pass, so it has no router; train it with --n_repeat 2 or more"
        )


def progress(items: Iterable[Any], what: str, unit: str = "batch") -> Iterable[Any]:
    """The items, with a progress bar if stderr is a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, disable=None)


def parse(flags: Any, description: str | None) -> tuple[Namespace, dict[str, Any]]:
    """The command's own flags, which `flags` adds to a parser, and the run's flags that were given."""
    return config.parse_with_run(None, flags, description)

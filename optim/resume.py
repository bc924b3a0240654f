"""The checkpoint that a run starts from (--use_pretrained), and the schedule of an extended run."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from config.run_name import identity
from errors import UsageError
from models import ModelConfig
from optim import checkpoint

logger = logging.getLogger(__name__)


def find_start(args: Namespace, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from, and its content; None for a fresh start.

    --use_pretrained auto: the newest readable one in the run's folder, if any. A file name: that checkpoint,
    in the run's folder or anywhere. None: a fresh start. Differing flags are logged.

    Raises UsageError for a fresh start that would overwrite a run, and for a checkpoint of another
    architecture.
    """
    if args.use_pretrained is None:
        existing = checkpoint.in_folder(folder)
        if existing:
            raise UsageError(
                f"--use_pretrained None would overwrite the run in {folder} ({existing[0].name}); "
                "give another --exp_name, or move that folder away"
            )
        return None
    if args.use_pretrained == "auto":
        start = checkpoint.newest(folder)
    else:
        inside = folder / args.use_pretrained
        path = inside if inside.exists() else Path(args.use_pretrained)
        start = path, checkpoint.load(path)
    if start is not None:
        _compare(start[0], start[1].get("args", {}), args)
    return start


class Extension(NamedTuple):
    """The schedule of a run that --iterations or --extend_schedule changes.

    schedule_iterations: the steps that the learning-rate schedule spans. sentence: to be logged at `level`,
    with a place for the rate; empty if nothing changes.
    """

    schedule_iterations: int
    level: int
    sentence: str


def extension(args: Namespace, content: dict[str, Any]) -> Extension:
    """The schedule with which the flags continue the run of a checkpoint with this content."""
    planned = content.get("args", {}).get("iterations", args.iterations)
    old_span = content.get("schedule_iterations", planned)
    span = old_span if args.extend_schedule == "keep" else args.iterations
    if planned == args.iterations and span == old_span:
        return Extension(span, logging.INFO, "")
    planned_now = f"the run was planned for {planned} iterations and now has {args.iterations}"
    rate = f"at step {content['step']} the learning rate is {{rate:.3g}}"
    if span == old_span:
        return Extension(
            span,
            logging.INFO,
            f"note: {planned_now}: --extend_schedule keep keeps the schedule of {old_span} iterations, and "
            f"its last rate afterwards; {rate}",
        )
    return Extension(
        span,
        logging.WARNING,
        f"{planned_now}: the schedule is rebuilt over {span} iterations instead of {old_span}, and {rate}. "
        "A second schedule is not the same as one long one (a reproduction lost 0.4 perplexity at 40k + 20k "
        "steps); --extend_schedule keep continues at the last rate of the first one",
    )


def _compare(path: Path, saved: dict[str, Any], args: Namespace) -> None:
    """Refuse another architecture, and log other flags that differ from those of the checkpoint's run."""
    before = identity(Namespace(**{**vars(args), **saved}))
    now = identity(args)
    differences = {
        name: f"--{name} {before.get(name)} -> {now.get(name)}"
        for name in dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name)
    }
    architecture = [text for name, text in differences.items() if name in ModelConfig.__dataclass_fields__]
    if architecture:
        raise UsageError(
            f"{path} is of another architecture ({', '.join(architecture)}); "
            "give the flags it was trained with, or another --exp_name"
        )
    if differences:
        logger.warning(f"{path} was trained with other flags: {', '.join(differences.values())}")

"""Where a run goes on: what --use_pretrained means, and when a run is finished already."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from config.run_name import identity
from errors import UsageError
from models import ModelConfig
from optim import checkpoint, run_folder

logger = logging.getLogger(__name__)


def find_start(args: Namespace, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its content; None for a fresh start.

    `auto`: the newest in the run's folder that can be read, if there is any. A file name: that one, in the
    run's folder or anywhere. None: a fresh start, refused where it would overwrite a run. Raises UsageError
    for that, and for a checkpoint of another architecture; other differences are logged.
    """
    if args.use_pretrained is None:
        existing = run_folder.in_folder(folder)
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
    """schedule_iterations: for how many the learning rate is to be laid out. sentence: on a run whose length
    or schedule has changed, logged at `level`, with a place for the rate; empty where nothing has."""

    schedule_iterations: int
    level: int
    sentence: str


def extension(args: Namespace, content: dict[str, Any]) -> Extension:
    """What becomes of the schedule of a checkpoint's run under --iterations and --extend_schedule."""
    planned = content.get("args", {}).get("iterations", args.iterations)
    laid_out = content.get("schedule_iterations", planned)
    schedule = laid_out if args.extend_schedule == "keep" else args.iterations
    if planned == args.iterations and schedule == laid_out:
        return Extension(schedule, logging.INFO, "")
    was = f"the run was planned for {planned} iterations and is now to have {args.iterations}"
    at = f"at step {content['step']} the learning rate is {{rate:.3g}}"
    if schedule == laid_out:
        return Extension(
            schedule,
            logging.INFO,
            f"note: {was}: --extend_schedule keep leaves its schedule of {laid_out} iterations as it is, and "
            f"holds the last rate behind it; {at}",
        )
    return Extension(
        schedule,
        logging.WARNING,
        f"{was}: the schedule is laid out anew, over {schedule} iterations instead of {laid_out}, "
        f"and {at}. A second schedule is not the same as one long one (a reproduction lost 0.4 perplexity at "
        "40k + 20k steps); --extend_schedule keep goes on at the rate at which the first one ends",
    )


def _compare(path: Path, saved: dict[str, Any], args: Namespace) -> None:
    """Refuse another architecture; say what else differs from the run that wrote the checkpoint."""
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
            f"{path} is of another network ({', '.join(architecture)}); "
            "give the flags it was trained with, or another --exp_name"
        )
    if differences:
        logger.warning(f"{path} was trained with other flags: {', '.join(differences.values())}")

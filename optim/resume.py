"""Whether a run has finished, the checkpoint it starts from, and the schedule of an extended run."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from config.base import all_flags
from config.run_name import identity
from errors import UsageError
from files import read_json
from models import ModelConfig
from models.variants import find_variant
from optim import checkpoint

logger = logging.getLogger(__name__)


def has_finished(args: Namespace, folder: Path) -> bool:
    """Whether the run that the flags describe is complete in `folder`, with at least --iterations steps.

    Raises UsageError if the finished run there was trained with other flags: its numbers would be taken for
    theirs.
    """
    if args.use_pretrained is None or not checkpoint.covered_by_summary(folder, args.iterations):
        return False  # None asks for a fresh start, which `find_start` refuses here
    path = folder / "summary.json"
    differences = _differences(read_json(path).get("args"), args)
    if differences:
        raise UsageError(
            f"{path} is of a finished run with other flags ({', '.join(differences.values())}); "
            "give the flags it was trained with, or another --exp_name"
        )
    return True


def find_start(args: Namespace, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from, and its content; None for a fresh start.

    --use_pretrained auto: the newest readable one in the run's folder, if any. A file name: that checkpoint,
    in the run's folder or anywhere. None: a fresh start. Differing flags are logged.

    Raises UsageError for a fresh start that would overwrite a run, and for a checkpoint of another
    architecture.
    """
    if args.use_pretrained is None:
        existing = [*checkpoint.in_folder(folder), *folder.glob("summary.json")]
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


def exactness(args: Namespace, on_gpu: bool) -> str:
    """How exactly an interrupted run resumes, and what that costs: one sentence."""
    if args.compile == "step" and find_variant(args.model).routed:
        return (
            "an interrupted run resumes up to rounding: --compile step makes its kernels for the numbers of "
            "tokens that a process routes first"
        )
    if not on_gpu:
        return "an interrupted run resumes bit for bit on this machine, with as many threads and processes"
    if args.deterministic:
        return (
            "an interrupted run resumes bit for bit on as many GPUs of this kind; with --deterministic false "
            "it resumes up to rounding, and its backward pass is faster"
        )
    return (
        "an interrupted run resumes up to rounding, as kernels sum in any order; with --deterministic true "
        "it resumes bit for bit, and its backward pass is slower"
    )


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
    differences = _differences(saved, args)
    architecture = [text for name, text in differences.items() if name in ModelConfig.__dataclass_fields__]
    if architecture:
        raise UsageError(
            f"{path} is of another architecture ({', '.join(architecture)}); "
            "give the flags it was trained with, or another --exp_name"
        )
    if "opt" in differences:
        raise UsageError(
            f"{path} holds the state of another optimiser ({differences['opt']}); "
            "give the one it was trained with, or another --exp_name"
        )
    if differences:
        logger.warning(f"{path} was trained with other flags: {', '.join(differences.values())}")
    rounding = [
        f"--{name} {saved[name]} -> {getattr(args, name)}"
        for name in ("deterministic", "tf32")
        if saved.get(name, getattr(args, name)) != getattr(args, name)
    ]
    if rounding:
        logger.info(
            f"note: {path} was trained with {', '.join(rounding)}: on a GPU the run continues with other "
            "rounding than it began with"
        )


def _differences(saved: dict[str, Any] | None, args: Namespace) -> dict[str, str]:
    """The flags that make `args` another experiment than the saved flags, as text by name.

    A flag that is younger than the saved ones had its default.
    """
    if not saved:
        return {}
    defaults = {one.name: one.default for one in all_flags()}
    before, now = identity(Namespace(**defaults | saved)), identity(args)
    values = (
        (name, before.get(name, defaults[name]), now.get(name, defaults[name])) for name in before | now
    )
    return {name: f"--{name} {old} -> {new}" for name, old, new in values if old != new}

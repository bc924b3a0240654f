"""Check and measure everything on a GPU: `python -m bench.gpu_gate`, or `make gpu-gate`."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import suite
from bench.gpu_gate.items import ITEMS
from bench.gpu_gate.runner import Result, done_before, run_items
from bench.plan import DTYPES, MODELS, Plan
from bench.results import RESULTS
from errors import Failure, UsageError, run_script, stdout_is_result, unknown
from files import write_json
from tables import aligned_table

MINUTES = 9.0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_gate",
        description="Check and measure everything on a GPU: each item in a process of its own with a limit, "
        "and results as JSON after each, so that what is done survives. The same command resumes a gate that "
        "was cut off. Needs torch with CUDA and numpy; items that need more are skipped without it.",
    )
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help="(default, for all items: bench/results/gpu-<card>-"
        "<commit>.json)")  # fmt: skip
    add("--only", nargs="+", metavar="NAME", help="these items, again if they are done (default: all)")
    add("--list", action="store_true", help="print the items and exit")
    add("--minutes", type=float, default=MINUTES, help="for all items together (default: %(default)g)")
    add(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, at sizes without meaning"
    )
    add("--tiny", action="store_true", help=argparse.SUPPRESS)  # a rehearsal's sizes on any device
    return parser


def make_plan(device: str, tiny: bool) -> Plan:
    return Plan(
        models=MODELS, sizes=None, dtypes=DTYPES, device=device, threads=None, repeats=1,
        effort="tiny" if tiny else "full", default_dtype="bfloat16",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    names = [item.name for item in ITEMS]
    for name in args.only or ():
        if name not in names:
            raise UsageError(unknown(f"--only {name} is unknown", name, names))
    if not args.minutes > 0:
        raise UsageError(f"--minutes {args.minutes:g} must be above 0")
    if args.list:
        stdout_is_result()
        print(aligned_table([(item.name, f"{item.limit_s:.0f} s", item.about) for item in ITEMS], "lrl"))
        return
    _require(args.device)
    plan = make_plan(args.device, args.tiny or args.device == "cpu")
    machine = suite.describe(plan, shlex.join(["python", "-m", "bench.gpu_gate", *(argv or sys.argv[1:])]))
    path = args.output
    if path is None and args.only is None and plan.cuda:
        path = RESULTS / f"gpu-{suite.file_name(machine)}"
    print(f"{machine['gpu'] or machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}")
    before = done_before(path, machine, args.only)
    order = {name: number for number, name in enumerate(names)}

    def keep(results: Sequence[Result]) -> None:
        if path is not None:
            found = sorted(results, key=lambda one: order.get(one["item"], len(order)))
            complete = {one["item"] for one in found} >= set(names)
            write_json(path, {"machine": machine, "complete": complete, "items": found})

    keep(list(before.values()))  # before minutes of work, for a folder that cannot be written
    if before:
        print(f"resumes {path}: {len(before)} items are done")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that items are ended with this
    chosen = [item for item in ITEMS if args.only is None or item.name in args.only]
    done = run_items(chosen, plan, keep, 60 * args.minutes, before)
    if path is not None:
        print(f"written to {path}")
    _conclude([item.name for item in chosen], done, args.minutes)


def _require(device: str) -> None:
    """Raises Failure where torch, or the GPU, is missing."""
    try:
        import torch
    except ImportError as error:
        raise Failure(f"this Python cannot import torch ({error}): install it, or take another") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise Failure("torch sees no GPU here: look at nvidia-smi; --device cpu rehearses the gate on a CPU")


def _conclude(names: Sequence[str], done: dict[str, Result], minutes: float) -> None:
    """Raises Failure unless all items passed or were skipped."""
    wrong = [name for name in names if name in done and done[name]["status"] in ("failed", "late")]
    missing = [name for name in names if name not in done]
    if missing:
        said = f"; failed: {', '.join(wrong)}" if wrong else ""
        raise Failure(
            f"{minutes:g} minutes were too short for {', '.join(missing)}; the same command resumes{said}"
        )
    if wrong:
        raise Failure(f"{len(wrong)} of {len(names)} items failed: {', '.join(wrong)}")
    print(f"all {len(names)} items passed, or were skipped for the reasons above")


if __name__ == "__main__":
    run_script(main)

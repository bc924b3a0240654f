"""All measurements of speed and memory: `python -m bench [--quick] [--only PART ...]`, or `make bench`."""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import suite
from bench.plan import DTYPES, MODELS, QUICK_MODELS, SIZES, TINY_MODELS, Plan
from bench.results import RESULTS, Result
from errors import Failure, UsageError, run_script, unknown
from files import write_json
from models.variants import find_variant

EPILOG = "parts:\n" + "\n".join(f"  {name:12} {about}" for name, (_, about) in suite.PARTS.items())
EPILOG += "\n\nsizes:\n" + "\n".join(f"  {name:12} {size.about}" for name, size in SIZES.items())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure this code on this machine: medians with quartiles of works that take turns,\n"
        "ratios to the plain path measured with them, and peak memory, each in a process of its own.",
    )  # fmt: skip
    add = parser.add_argument
    add("--quick", action="store_true", help="three models, small sizes, few repeats: minutes")
    add("--tiny", action="store_true", help="meaningless sizes, in seconds: tests the suite itself")
    add("--only", nargs="+", metavar="PART", default=list(suite.PARTS), help="these parts (default: all)")
    add("--models", nargs="+", metavar="MODEL", help="names or aliases of --model (default: all)")
    add("--sizes", nargs="+", metavar="SIZE", help="of train and eval (default: baseline nano), floor, "
        "prefill and decode (default: baseline)")  # fmt: skip
    add("--dtypes", nargs="+", metavar="DTYPE", help="float32, bfloat16 (default: both)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, help="torch's, on a CPU (default: torch's own choice)")
    add("--repeats", type=int, help="(default: 5; 3 with --quick, 1 with --tiny); scaling, "
        "tokeniser and paper have their own")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="results after each case; interrupted, the same command "
        "resumes (default, if nothing is left out: bench/results/<machine>-<commit>.json)")  # fmt: skip
    return parser


def make_plan(args: argparse.Namespace) -> Plan:
    """Raises UsageError for unknown names and impossible numbers."""
    effort = "tiny" if args.tiny else "quick" if args.quick else "full"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        raise UsageError(f"--device {args.device} must be auto, cpu, cuda or cuda:N")
    models = tuple(find_variant(name).alias for name in args.models or ())
    repeats = {"full": 5, "quick": 3, "tiny": 1}[effort] if args.repeats is None else args.repeats
    for flag, given, allowed in (
        ("--only", args.only, suite.PARTS), ("--sizes", args.sizes, SIZES), ("--dtypes", args.dtypes, DTYPES)
    ):  # fmt: skip
        for name in given or ():
            if name not in allowed:
                raise UsageError(unknown(f"{flag} {name} is unknown", name, allowed))
    for flag, number in (("--repeats", repeats), ("--threads", args.threads)):
        if number is not None and number < 1:
            raise UsageError(f"{flag} {number} must be at least 1")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or the clock would wait for a GPU, and make its context
    from distributed import choose_device, choose_precision  # imports torch, after all that needs no torch

    device = choose_device(args.device)
    trained_in = str(choose_precision("bfloat16", device).dtype).removeprefix("torch.")
    return Plan(
        models=models or {"full": MODELS, "quick": QUICK_MODELS, "tiny": TINY_MODELS}[effort],
        sizes=tuple(args.sizes) if args.sizes else None,
        dtypes=tuple(args.dtypes or (DTYPES[:1] if args.tiny else DTYPES)),
        device=str(device),
        threads=args.threads,
        repeats=repeats,
        effort=effort,
        default_dtype=args.dtypes[-1] if args.dtypes else trained_in,
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    plan = make_plan(args)
    machine = suite.describe(plan, shlex.join(["python", "-m", "bench", *(argv or sys.argv[1:])]))
    path = args.json
    chosen = args.quick or args.tiny or args.models or args.sizes or args.dtypes or args.repeats
    if path is None and not chosen and set(args.only) == set(suite.PARTS):
        path = RESULTS / suite.file_name(machine)
    print(
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}, commit {machine['commit']}"
    )
    done = suite.measured_before(path, machine)

    def keep(results: list[Result], complete: bool = False) -> None:
        if path is not None:
            write_json(path, {"machine": machine, "complete": complete, "results": results})

    try:
        keep([one for results in done.values() for one in results])  # before hours of measuring
    except Failure as error:
        raise UsageError(str(error)) from error
    if done:
        print(f"resumes {path}: {len(done)} cases are measured")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that measurements are ended with us
    keep(suite.measure_all(args.only, plan, keep, done), complete=True)
    if path is not None:
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    run_script(main)

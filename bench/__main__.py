"""All measurements, one command: `python -m bench [--quick] [--only part ...]`, or `make bench`."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.baseline import difference
from bench.parts import PARTS
from bench.plan import DEFAULT_SIZES, DTYPES, MODELS, QUICK_MODELS, SIZES, Done, Plan
from bench.processes import terminated_like_interrupted
from bench.results import RESULTS, begun, require_writable
from bench.suite import flat, run
from errors import UsageError, run_script, unknown
from files import write_json
from models.variants import find_variant

EPILOG = "parts:\n" + "\n".join(f"  {name:12} {about}" for name, (_, about) in PARTS.items())
EPILOG += "\n\nsizes:\n" + "\n".join(f"  {name:12} {size.about}" for name, size in SIZES.items())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure this code on this machine: medians of repetitions in turn, with quartiles,\n"
        "ratios against the plain path in the same run, the memory of each phase in a process of its own.",
    )  # fmt: skip
    add = parser.add_argument
    add("--quick", action="store_true", help="three models, small sizes, few repetitions: three minutes")
    add("--tiny", action="store_true", help="sizes that mean nothing, in seconds: to test the suite itself")
    add("--only", nargs="+", metavar="PART", default=list(PARTS), help="these parts (default: all)")
    add("--models", nargs="+", metavar="MODEL", help="names or aliases of --model (default: all)")
    add(
        "--sizes",
        nargs="+",
        metavar="SIZE",
        help="of train and eval (default: baseline nano), floor, prefill and decode (default: baseline)",
    )
    add("--dtypes", nargs="+", metavar="DTYPE", help="float32, bfloat16 (default: both)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, help="that torch computes with on a CPU (default: torch's own choice)")
    add(
        "--repeats",
        type=int,
        help="of what takes turns (default: 5; 3 with --quick, 1 with --tiny); baseline, scaling, "
        "ddp, startup, tokeniser and paper have their own",
    )
    add("--baseline", metavar="FILE", help="the released code's measurements, for the part baseline")
    add("--figure", type=Path, help="draw the part scaling into this .png, .pdf or .svg (default: "
        "a .png beside the result, where that has its default name)")  # fmt: skip
    add(
        "--json",
        type=Path,
        help="write the result here after each case, and go on with what was cut off, by the same command, "
        "code and machine (default: bench/results/<machine>-<commit>.json, of a whole run only)",
    )
    return parser


def make_plan(args: argparse.Namespace) -> Plan:
    """Raises UsageError for names that do not exist and numbers that cannot be."""
    effort = "tiny" if args.tiny else "quick" if args.quick else "full"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        raise UsageError(f"--device {args.device} is none of auto, cpu, cuda, cuda:N")
    if args.figure and "scaling" not in args.only:
        raise UsageError(f"--figure {args.figure} draws the part scaling, which --only leaves out")
    for name in args.only:
        if name not in PARTS:
            raise UsageError(unknown(f"--only {name}: there is no such part", name, PARTS))
    models = tuple(find_variant(name).alias for name in args.models or ())
    for flag, given, allowed in (("--sizes", args.sizes, SIZES), ("--dtypes", args.dtypes, DTYPES)):
        for name in given or ():
            if name not in allowed:
                raise UsageError(unknown(f"{flag} {name} is unknown", name, allowed))
    repeats = {"full": 5, "quick": 3, "tiny": 1}[effort] if args.repeats is None else args.repeats
    for flag, number in (("--repeats", repeats), ("--threads", args.threads)):
        if number is not None and number < 1:
            raise UsageError(f"{flag} {number} must be at least 1")
    from bench.builds import run_dtype  # torch is imported here, after what can be refused without it
    from distributed import choose_device

    device = choose_device(args.device)

    return Plan(
        models=models or (MODELS if effort == "full" else QUICK_MODELS),
        sizes=tuple(args.sizes or DEFAULT_SIZES[effort]),
        dtypes=tuple(args.dtypes or DTYPES),
        device=str(device),
        threads=args.threads,
        repeats=repeats,
        effort=effort,
        run_dtype=args.dtypes[-1] if args.dtypes else run_dtype(device),
        baseline=args.baseline,
        sizes_chosen=args.sizes is not None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    plan = make_plan(args)
    if args.figure:
        from plots.style import FORMATS

        if args.figure.suffix not in FORMATS:
            raise UsageError(f"--figure {args.figure}: the suffix must be one of {', '.join(FORMATS)}")
    command = shlex.join(["python", "-m", "bench", *(sys.argv[1:] if argv is None else argv)])
    where = machine.describe(plan, command)
    path, figure = args.json, args.figure
    chosen = args.quick or args.tiny or args.models or args.sizes or args.dtypes or args.repeats
    if path is None and not chosen and set(args.only) == set(PARTS):
        path = RESULTS / machine.file_name(where)
        figure = figure or path.with_suffix(".png")
    for place in filter(None, (path, figure)):
        require_writable(place)
    print(
        f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {where['threads']} threads, "
        f"torch {where['torch']}, commit {where['commit']}"
    )
    baseline_note(args, where)

    done = begun(path, where)
    if done:
        print(f"going on with {path}: {len(done)} cases are measured")

    def keep(done: Done, complete: bool = False) -> None:
        if path is not None:
            cases = [[*case, len(rows)] for case, rows in done.items()]
            write_json(path, {"machine": where, "complete": complete, "cases": cases, "rows": flat(done)})

    with terminated_like_interrupted():
        done = run(args.only, plan, keep, done)
    keep(done, complete=True)
    if path is not None:
        print(f"\nwritten to {path}")
    if figure:
        from bench.parts.scaling import draw

        draw(flat(done), figure)


def baseline_note(args: argparse.Namespace, where: dict[str, Any]) -> None:
    """Say what the released code's numbers are worth here."""
    if "baseline" not in args.only:
        return
    from bench.parts.released import read

    released = read(args.baseline)
    if released is None:
        print("no --baseline FILE: seconds of this code alone")
        return
    said = difference(released, where)
    print("forward_s holds the head's gradients (--loss chunked): lay its sum with backward_s beside theirs")
    print(said or "the machines are of the same kind; their speed may still have drifted")


if __name__ == "__main__":
    run_script(main)

"""The paper's tables from runs: `python reproduce.py list|show|run|status|report`."""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from config.parser import Parser
from config.scales import SCALES
from errors import UsageError, run_script
from reproduction import plan

COMMANDS = {
    "list": "the rows, with their published values",
    "show": "the flags of rows at a scale, and where their runs lie",
    "run": "train and evaluate what is not complete; interrupted, it goes on from there",
    "status": "how far each run is",
    "report": "ours beside the published values, and whether the paper's ordering holds",
}


def build_parser() -> Parser:
    parser = Parser(description=__doc__, epilog="What stands behind -- is given to main.py, for all runs.")
    add = parser.add_argument
    add(
        "command",
        choices=tuple(COMMANDS),
        metavar="command",
        help="; ".join(f"{name}: {about}" for name, about in COMMANDS.items()),
    )
    add(
        "rows",
        nargs="*",
        metavar="row",
        help="of config/experiments.py, or how they begin; none: all of them",
    )
    add("--scale", choices=tuple(SCALES), default="nano", help="the size of the experiments")
    add("--seeds", type=int, nargs="+", default=list(plan.SEEDS), help="one run of each row for each of them")
    add("--results_base_folder", default="./exps", help="where the runs lie")
    add("--data_dir", help="where token files lie; None: data/datasets")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--jobs", type=int, default=1, help="run: so many at a time")
    add("--format", choices=("text", "markdown", "latex"), default="text", help="report: of the tables")
    add("--output", type=Path, help="report: a file, besides the terminal")
    add("--figures", type=Path, help="report: a folder, for its figures and their numbers")
    return parser


def planned(args: Namespace) -> list[plan.Run]:
    flags = ["--results_base_folder", args.results_base_folder, "--device", args.device]
    flags += ["--data_dir", args.data_dir] if args.data_dir else []
    return plan.make_plan(plan.choose_rows(args.rows), args.scale, args.seeds, [*flags, *args.flags])


def show_rows(args: Namespace) -> None:
    from config.experiments import BY_NAME

    for name in plan.choose_rows(args.rows):
        row = BY_NAME[name]
        value = "" if row.perplexity is None else f"{row.perplexity:.2f}"
        error = "" if row.error is None else f" ({row.error:.2f})"
        print(f"{name:36} {value}{error}".rstrip())
    print("\n".join(f"--scale {name}: {scale.about}" for name, scale in SCALES.items()))


def show_flags(args: Namespace) -> None:
    for run in planned(args):
        print(f"{', '.join(run.rows)}\n  python main.py {shlex.join(run.flags)}\n  {run.folder}")


def show_status(args: Namespace) -> None:
    for run in planned(args):
        state = "complete" if run.complete else f"step {run.step():,} of {run.args.iterations:,}"
        print(f"{run.rows[0]:36} seed {run.seed}  {state}")


def train(args: Namespace) -> None:
    from reproduction.execute import Executor, require_success

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs} must be at least 1")
    require_success(Executor().run(planned(args), args.jobs, ["--device", args.device]))


def report(args: Namespace) -> None:
    from reproduction import formats
    from reproduction import report as numbers
    from reproduction.origin import describe

    runs = planned(args)
    lines = numbers.lines(runs)
    findings, zero_shot = numbers.findings(runs), formats.zero_shot_cells(numbers.zero_shot(runs))
    draw = formats.FORMATS[args.format]
    parts = [draw(formats.HEADINGS, map(formats.line_cells, lines))]
    if findings:
        parts.append(draw(formats.CLAIM_HEADINGS, map(formats.finding_cells, findings)))
    if zero_shot:
        parts.append(draw(tuple(zero_shot[0]), zero_shot))
    text = "\n\n".join([*parts, describe(runs)]) + "\n"
    sys.stdout.write(text)
    if args.output:
        from files import write_atomically

        write_atomically(args.output, lambda file: file.write(text.encode()))
    if args.figures:
        from reproduction.figures import draw_report

        print(f"written: {', '.join(map(str, draw_report(runs, lines, findings, args.figures)))}")


def main() -> None:
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args = build_parser().parse(words[:split])
    args.flags = words[split + 1 :]
    commands = {"list": show_rows, "show": show_flags, "run": train, "status": show_status, "report": report}
    commands[args.command](args)


if __name__ == "__main__":
    run_script(main)

"""Reproduce the paper's tables: `python reproduce.py list|show|run|status|report`."""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from config.parser import Parser
from config.scales import SCALES
from errors import UsageError, run_script, stdout_is_result
from reproduction import plan
from tables import FORMATS, aligned_table

COMMANDS = {
    "list": "the experiments, with their published perplexity",
    "show": "flags and run folders of experiments at a scale",
    "run": "train and evaluate what is not complete; an interrupted run resumes",
    "status": "the progress of each run",
    "report": "our results next to the published ones, and whether the paper's claims hold",
}


def build_parser() -> Parser:
    parser = Parser(description=__doc__, epilog="Flags after -- go to main.py, for all runs.")
    add = parser.add_argument
    add(
        "command",
        choices=tuple(COMMANDS),
        metavar="command",
        help="; ".join(f"{name}: {about}" for name, about in COMMANDS.items()),
    )
    add(
        "experiments",
        nargs="*",
        metavar="experiment",
        help="names in config/experiments.py, or their beginnings (table1); none: all",
    )
    add("--scale", choices=tuple(SCALES), default="nano", help="the size of the experiments")
    add("--seeds", type=int, nargs="+", default=list(plan.SEEDS), help="one run of each experiment for each")
    add("--results_base_folder", default="./exps", help="folder of the runs")
    add("--data_dir", help="folder of the token files; None: data/datasets")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--jobs", type=int, default=1, help="run: the number of runs at a time")
    add("--format", choices=tuple(FORMATS), default="text", help="report: the format of tables")
    add("--output", type=Path, help="report: also write it to this file")
    add("--figures", type=Path, help="report: a folder for its figures and their numbers")
    return parser


def planned(args: Namespace) -> list[plan.Run]:
    flags = ["--results_base_folder", args.results_base_folder, "--device", args.device]
    flags += ["--data_dir", args.data_dir] if args.data_dir else []
    experiments = plan.choose_experiments(args.experiments)
    return plan.make_plan(experiments, args.scale, args.seeds, [*flags, *args.flags])


def list_experiments(args: Namespace) -> None:
    from config.experiments import BY_NAME

    rows = []
    for name in plan.choose_experiments(args.experiments):
        published = BY_NAME[name]
        value = "" if published.perplexity is None else f"{published.perplexity:.2f}"
        error = "" if published.error is None else f" ({published.error:.2f})"
        rows.append((name, value + error))
    print(aligned_table(rows))
    print("\n".join(f"--scale {name}: {scale.about}" for name, scale in SCALES.items()))


def show_flags(args: Namespace) -> None:
    for run in planned(args):
        print(f"{', '.join(run.experiments)}\n  python main.py {shlex.join(run.flags)}\n  {run.folder}")


def show_status(args: Namespace) -> None:
    rows = []
    for run in planned(args):
        state = "complete" if run.complete else f"step {run.step():,} of {run.args.iterations:,}"
        rows.append((run.experiments[0], f"seed {run.seed}", state))
    print(aligned_table(rows))


def train(args: Namespace) -> None:
    from reproduction.execute import Executor, require_success

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs} must be at least 1")
    require_success(Executor().run(planned(args), args.jobs, ["--device", args.device]))


def report(args: Namespace) -> None:
    from reproduction import claims
    from reproduction import report as tables

    runs = planned(args)
    rows, findings = tables.rows(runs), claims.find(runs)
    text = tables.write(runs, rows, findings, args.format)
    sys.stdout.write(text)
    if args.output:
        from files import write_atomically

        write_atomically(args.output, lambda file: file.write(text.encode(errors="backslashreplace")))
    if args.figures:
        from reproduction.figures import draw_report

        print(f"written: {', '.join(map(str, draw_report(runs, rows, findings, args.figures)))}")


def main() -> None:
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args = build_parser().parse(words[:split])
    args.flags = words[split + 1 :]
    if args.command != "run" and not (args.output or args.figures):
        stdout_is_result()
    commands = {
        "list": list_experiments,
        "show": show_flags,
        "run": train,
        "status": show_status,
        "report": report,
    }
    commands[args.command](args)


if __name__ == "__main__":
    run_script(main)

"""Draw the curves of one or several runs: `python plot_curves.py <run folder> ... [--output curves.png]`."""

from pathlib import Path

from config.parser import Parser
from errors import UsageError, run_script

FORMATS = (".png", ".pdf", ".svg")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="run", help="a run's folder (with metrics.jsonl)"
    )
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="a .png, .pdf or .svg file")
    parser.add_argument("--labels", nargs="+", help="one name for each run; None: model and folder")
    args = parser.parse(None)
    if args.output.suffix not in FORMATS:
        raise UsageError(f"--output {args.output}: the suffix must be one of {', '.join(FORMATS)}")
    labels = args.labels or [f"{run.resolve().parent.name}/{run.resolve().name}" for run in args.runs]
    if len(labels) != len(args.runs) or len(set(labels)) != len(labels):
        raise UsageError(f"{len(args.runs)} runs need as many different labels; given: {', '.join(labels)}")

    from evaluation.figures import draw_curves
    from optim.metrics import read_metrics

    draw_curves({label: read_metrics(run) for label, run in zip(labels, args.runs, strict=True)}, args.output)
    print(f"written: {args.output}")


if __name__ == "__main__":
    run_script(main)

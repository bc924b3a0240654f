"""Draw training curves of runs: `python plot_curves.py <run folder> ... [--output curves.png]`."""

from pathlib import Path

from config.parser import Parser
from errors import run_script
from plots.inputs import check_labels


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="run", help="a run's folder (with metrics.jsonl)"
    )
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="a .png, .pdf or .svg file")
    parser.add_argument("--labels", nargs="+", help="a label for each run; default: model and what differs")
    args = parser.parse(None)
    labels = check_labels(args.runs, args.labels, args.output)
    from optim.metrics import read_metrics
    from plots import curves

    curves.draw({label: read_metrics(run) for label, run in zip(labels, args.runs, strict=True)}, args.output)
    print(f"written: {args.output}")


if __name__ == "__main__":
    run_script(main)

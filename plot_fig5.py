"""Draw router scores (Figure 5): `python plot_fig5.py <run folder or router_weights_*.npz> ...`."""

from pathlib import Path

from config.parser import Parser
from errors import UsageError, run_script
from plots.inputs import FIGURE_HELP, check_labels, check_numbers, find_results


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="run",
        help="file of get_router_weights.py, or its folder",
    )
    parser.add_argument("--output", type=Path, default=Path("figure5.png"), help=FIGURE_HELP)
    parser.add_argument("--labels", nargs="+", help="a label for each file; default: model and what differs")
    parser.add_argument("--router", type=int, help="which router, from 1; default: the last")
    parser.add_argument(
        "--kind",
        choices=("raw", "cascade", "position_cascade"),
        default="raw",
        help="its scores, the lowest score of a token so far, or the released script's minimum over rows",
    )
    args = parser.parse(None)
    files = [
        file
        for run in args.runs
        for file in find_results(run, "router_weights_*.npz", "get_router_weights.py")
    ]
    labels = check_labels(files, args.labels, args.output)
    check_numbers(args.output, files)
    from evaluation.router_weights import read_weights
    from plots import figure5

    scores = {}
    for label, file in zip(labels, files, strict=True):
        arrays, about = read_weights(file)
        count = about["n_repeat"] - 1
        if args.router is not None and not 1 <= args.router <= count:
            raise UsageError(f"--router {args.router}: {file} has routers 1 to {count}")
        scores[label] = arrays[args.kind][:, (args.router or count) - 1]
    which = "last router" if args.router is None else f"router {args.router}"
    print(figure5.draw(scores, args.output, f"{args.kind.replace('_', ' ')} score of the {which}"))


if __name__ == "__main__":
    run_script(main)

"""Draw perplexity over compute (Figure 4): `python plot_fig4.py <run folder or ppl_per_mac_*.json> ...`."""

from pathlib import Path

from config.parser import Parser
from errors import run_script
from plots.inputs import FIGURE_HELP, check_labels, check_numbers, find_result


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="run",
        help="file of get_ppl_per_mac.py, or its folder",
    )
    parser.add_argument("--output", type=Path, default=Path("figure4.png"), help=FIGURE_HELP)
    parser.add_argument("--labels", nargs="+", help="a label for each run; default: model and what differs")
    parser.add_argument(
        "--published", action="store_true", help="with the paper's values (OpenWebText2, 256 tokens)"
    )
    args = parser.parse(None)
    labels = check_labels(args.runs, args.labels, args.output)
    from evaluation.compute_sweep import read_sweep
    from plots import figure4
    from reproduction.figures import published_anchors

    files = [find_result(run, "ppl_per_mac_*.json", "get_ppl_per_mac.py") for run in args.runs]
    check_numbers(args.output, files)
    sweeps = {label: read_sweep(file) for label, file in zip(labels, files, strict=True)}
    print(figure4.draw(sweeps, args.output, published_anchors() if args.published else ()))


if __name__ == "__main__":
    run_script(main)

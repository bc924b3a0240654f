"""Draw perplexity over compute of Table 1's models (Figure 2), as far as trained: `python plot_fig2.py`."""

from pathlib import Path

from config.parser import Parser
from config.scales import SCALES
from errors import Failure, run_script
from plots.inputs import FIGURE_HELP, check_labels


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--scale", choices=tuple(SCALES), default="nano", help="the size of the experiments")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to average over")
    add("--results_base_folder", default="./exps", help="folder of the runs")
    add(
        "--published",
        action="store_true",
        help="with the paper's points, of its own size and text",
    )
    add("--output", type=Path, default=Path("figure2.png"), help=FIGURE_HELP)
    args = parser.parse(None)
    check_labels([], [], args.output)
    from plots import figure2
    from reproduction.figures import figure_2, figure_2_experiments
    from reproduction.plan import make_plan

    flags = ["--results_base_folder", args.results_base_folder]
    points = figure_2(make_plan(figure_2_experiments(), args.scale, args.seeds, flags))
    if not args.published and not any(point["perplexity"] is not None for point in points):
        raise Failure(
            f"none of its experiments is trained under {args.results_base_folder}: python reproduce.py run "
            f"table1 figure2 --scale {args.scale} trains them; --published draws the paper's points"
        )
    print(figure2.draw(points, args.output, args.published, same_size=args.scale == "paper"))


if __name__ == "__main__":
    run_script(main)

"""Compute over the length of the text (Figure 3), counted, not trained: `python plot_fig3.py`."""

from pathlib import Path

from config.parser import Parser
from errors import run_script
from evaluation.figures import check_labels


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("figure3.png"),
        help="a .png, .pdf or .svg file; a .json goes beside it",
    )
    args = parser.parse(None)
    check_labels([], [], args.output)
    from files import write_json
    from reproduction.figures import draw_figure_3, figure_3

    content = figure_3()
    draw_figure_3(content, args.output)
    write_json(args.output.with_suffix(".json"), content)
    print(f"written: {args.output} and {args.output.with_suffix('.json').name}")


if __name__ == "__main__":
    run_script(main)

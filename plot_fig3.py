"""Draw compute over sequence length (Figure 3), counted without training: `python plot_fig3.py`."""

from pathlib import Path

from config.parser import Parser
from errors import run_script
from plots.inputs import FIGURE_HELP, check_labels


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("figure3.png"), help=FIGURE_HELP)
    args = parser.parse(None)
    check_labels([], [], args.output)
    from plots import figure3
    from reproduction.figures import figure_3

    print(figure3.draw(figure_3(), args.output))


if __name__ == "__main__":
    run_script(main)

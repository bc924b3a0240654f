"""Draw attention of the last token (Figure 6): `python plot_fig6.py <run folder or attention_*.npz>`.

A panel for each head, a curve for each repeat over token positions: attention probabilities of a window's
last token in the last repeat, in one softmax over all visible (repeat, token) keys, averaged over windows of
the validation text.
"""

from pathlib import Path

from config.parser import Parser
from errors import run_script
from plots.inputs import FIGURE_HELP, check_labels, check_numbers, find_result


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="file of get_attention.py, or its folder")
    parser.add_argument("--output", type=Path, default=Path("figure6.png"), help=FIGURE_HELP)
    parser.add_argument("--heads", type=int, nargs="+", help="which heads, from 0; default: all in the file")
    args = parser.parse(None)
    check_labels([args.run], None, args.output)
    from analysis.attention_maps import choose_heads, read_attention
    from plots import figure6

    file = find_result(args.run, "attention_*.npz", "get_attention.py")
    check_numbers(args.output, [file])
    attention, about = read_attention(file)
    print(figure6.draw(attention, about, choose_heads(about["heads"], args.heads), args.output))


if __name__ == "__main__":
    run_script(main)

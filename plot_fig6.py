"""Attention of the last token (Figure 6), drawn: `python plot_fig6.py <run folder or attention_*.npz>`.

A panel for each head, a curve for each repeat over token positions. What is averaged, over windows of the
validation text: the query is that of a window's last token in the last repeat; its probabilities are of one
softmax over all (repeat, token) keys that one layer lets it see (`analysis.last_attention`).
"""

from pathlib import Path

from config.parser import Parser
from errors import UsageError, run_script
from plots.style import FIGURE_HELP, check_labels, check_numbers


def attention_file(path: Path) -> Path:
    """The file itself, or the only one in a run's folder."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("attention_*.npz"))
    if len(found) != 1:
        raise UsageError(
            f"{path} holds {len(found)} files attention_*.npz; "
            + ("name one of them" if found else f"python get_attention.py --checkpoint {path} writes one")
        )
    return found[0]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="what get_attention.py wrote, or its folder")
    parser.add_argument("--output", type=Path, default=Path("figure6.png"), help=FIGURE_HELP)
    parser.add_argument("--heads", type=int, nargs="+", help="which, from 0; None: all that were written")
    args = parser.parse(None)
    check_labels([args.run], None, args.output)
    from analysis.attention_file import choose_heads, read_attention
    from plots import figure6

    file = attention_file(args.run)
    check_numbers(args.output, [file])
    attention, about = read_attention(file)
    print(figure6.draw(attention, about, choose_heads(about["heads"], args.heads), args.output))


if __name__ == "__main__":
    run_script(main)

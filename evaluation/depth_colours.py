"""Text with each token coloured by the passes it took: ANSI colours for a terminal, or an HTML page."""

import html
from collections.abc import Sequence

# From few passes to many: light to dark, in colours that colour-blind readers can tell apart.
_SCALE = ((255, 247, 188), (254, 217, 118), (254, 153, 41), (217, 95, 14), (153, 52, 4))


def colour(passes: int, n_repeat: int) -> tuple[int, int, int]:
    """Returns (red, green, blue) of the background for a token that took 1 <= passes <= n_repeat passes."""
    place = (len(_SCALE) - 1) * (passes - 1) / max(1, n_repeat - 1)
    low = min(int(place), len(_SCALE) - 2)
    part = place - low
    return tuple(round(a + (b - a) * part) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))


def _is_dark(rgb: tuple[int, int, int]) -> bool:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128


def ansi(piece: str, passes: int, n_repeat: int) -> str:
    """Returns the piece with ANSI colours; 0 passes: without.

    Lines are coloured one by one, so that the background ends with the text of each.
    """
    if not passes or not piece:
        return piece
    rgb = colour(passes, n_repeat)
    start = f"\x1b[{97 if _is_dark(rgb) else 30};48;2;{rgb[0]};{rgb[1]};{rgb[2]}m"
    return "\n".join(f"{start}{line}\x1b[0m" if line else "" for line in piece.split("\n"))


def ansi_legend(n_repeat: int) -> str:
    """Returns a line with the colour of each number of passes."""
    return "passes: " + " ".join(ansi(f" {passes} ", passes, n_repeat) for passes in range(1, n_repeat + 1))


def html_page(texts: Sequence[tuple[str, Sequence[tuple[str, int]]]], n_repeat: int, title: str) -> str:
    """Returns a self-contained HTML page.

    Args:
        texts: (prompt, [(piece, passes), ...]) for each text.
    """
    style = ["body{font:16px/1.6 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"]
    style.append("pre{font:14px/1.7 monospace;white-space:pre-wrap}")
    for passes in range(1, n_repeat + 1):
        rgb = colour(passes, n_repeat)
        ink = "#fff" if _is_dark(rgb) else "#000"
        style.append(f".p{passes}{{background:rgb{rgb};color:{ink}}}")
    legend = " ".join(f'<span class="p{n}">&nbsp;{n}&nbsp;</span>' for n in range(1, n_repeat + 1))
    bodies = []
    for prompt, pieces in texts:
        spans = "".join(
            f'<span class="p{passes}" title="{passes} of {n_repeat} passes">{html.escape(piece)}</span>'
            if passes
            else html.escape(piece)
            for piece, passes in pieces
        )
        bodies.append(f"<pre>{html.escape(prompt)}{spans}</pre>")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{''.join(style)}</style><h1>{html.escape(title)}</h1><p>Passes: {legend}</p>"
        f"{''.join(bodies)}</html>\n"
    )

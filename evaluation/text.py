"""Text from a model: streamed continuations of prompts, the cost of each token, and colours that show it."""

import html
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch

from data.tokenizers import StreamDecoder, Tokenizer, prompt_ids
from distributed import Precision
from models.generation import generate
from models.language_model import LanguageModel

# Backgrounds from few passes to many: light to dark, in colours that colour-blind readers can tell apart.
_SCALE = ((255, 247, 188), (254, 217, 118), (254, 153, 41), (217, 95, 14), (153, 52, 4))


@dataclass
class TextCost:
    """Cost of one text, filled in while it is generated.

    passes: through the middle, for each generated token. seconds: of each step; the first step includes the
    prompt.
    """

    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def describe(self, model: LanguageModel) -> str:
        """Returns one line with speed, prompt excluded, and average depth."""
        n_begin, n_mid, n_end = model.config.layers
        depth = statistics.mean(self.passes) * n_mid + n_begin + n_end
        steps = self.seconds[1:]
        speed = f"{len(steps) / sum(steps):.1f} tokens/s after the prompt, " if steps else ""
        return (
            f"{len(self.passes)} tokens, {speed}{statistics.mean(self.passes):.2f} of {model.config.repeats} "
            f"passes and {depth:.1f} blocks per token"
        )


def stream_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    precision: Precision,
    *,
    seed: int,
    costs: Sequence[TextCost] | None = None,
    **settings: Any,
) -> Iterator[list[tuple[str, int]]]:
    """Continue prompts of any lengths in one batch.

    Args:
        seed: the same seed gives the same text.
        costs: one for each prompt, filled in on the way.
        settings: keyword arguments of `models.generation.generate`.

    Yields:
        At each step (text, passes) for each prompt: the new piece of text and the passes its token took. A
        piece never ends within a character, so it may be empty; the last step brings the rest, with 0 passes.

    Raises:
        UsageError: a prompt has no tokens.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    decoders = [StreamDecoder(tokenizer, one) for one in ids]
    started = time.perf_counter()
    with precision.autocast():
        for drawn in generate(
            model,
            ids,
            max_new_tokens,
            n_tokens=tokenizer.vocab_size,
            generator=torch.Generator().manual_seed(seed),
            **settings,
        ):
            seconds, started = time.perf_counter() - started, time.perf_counter()
            passes = drawn.passes.tolist()
            for cost, count in zip(costs or [], passes, strict=bool(costs)):
                cost.passes.append(count)
                cost.seconds.append(seconds)
            pieces = [
                decoder.push(token) for decoder, token in zip(decoders, drawn.tokens.tolist(), strict=True)
            ]
            yield list(zip(pieces, passes, strict=True))
    yield [(decoder.finish(), 0) for decoder in decoders]


def colour(passes: int, n_repeat: int) -> tuple[int, int, int]:
    """Returns (red, green, blue) of the background for a token that took 1 <= passes <= n_repeat passes."""
    place = (len(_SCALE) - 1) * (passes - 1) / max(1, n_repeat - 1)
    low = min(int(place), len(_SCALE) - 2)
    part = place - low
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return red, green, blue


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


def takes_colours(stream: TextIO) -> bool:
    """Returns whether to write colours to a stream: to a terminal, unless NO_COLOR or FORCE_COLOR is set.

    Set to the empty string, they count as not set (no-color.org).
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


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

"""attention_<checkpoint>.json and .npz: what get_attention.py writes, and plot_fig6.py draws.

Shapes: H heads that were chosen, R passes, T tokens of a window.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import Failure, UsageError
from files import write_atomically, write_json

ARRAY = "attention"
AVERAGE = (
    "attention[head, repeat, token]: the probability with which the last token of a window looks, in its "
    "last repeat, at a token's key of a repeat, in one softmax over all of them; the mean over windows"
)


def write_attention(path: Path, about: dict[str, Any], attention: np.ndarray) -> dict[str, Any]:
    """Write the array (H, R, T) to `path`, an .npz, and what describes it beside it -> the latter."""
    content = {
        **about,
        "average": AVERAGE,
        "by_repeat": {
            str(head): mean.sum(-1).tolist() for head, mean in zip(about["heads"], attention, strict=True)
        },
        "arrays": path.name,
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **{ARRAY: attention}))
    write_json(path.with_suffix(".json"), content)
    return content


def read_attention(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The array (H, R, T), and the .json. path: of either file.

    Raises UsageError when one of them is missing, Failure when they are damaged.
    """
    array_path, about_path = path.with_suffix(".npz"), path.with_suffix(".json")
    for part in (array_path, about_path):
        if not part.is_file():
            raise UsageError(f"{part} is missing; python get_attention.py --checkpoint ... writes it")
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        with np.load(array_path, allow_pickle=False) as content:
            attention = content[ARRAY]
        expected = len(about["heads"]), about["n_repeat"], about["sequence_length"]
        if attention.shape != expected:
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise Failure(
            f"{array_path} or {about_path.name} is damaged, or not of get_attention.py; delete both and run "
            "it again"
        ) from error
    return attention, about


def choose_heads(available: Sequence[int], heads: Sequence[int] | None) -> list[int]:
    """All of them, if none are given. Raises UsageError for one that is not there, or is given twice."""
    if heads is None:
        return list(available)
    shown = " ".join(map(str, heads))
    if not set(heads) <= set(available):
        raise UsageError(f"--heads {shown}: there are heads {', '.join(map(str, available))}")
    if len(set(heads)) < len(heads):
        raise UsageError(f"--heads {shown}: each once")
    return list(heads)


def describe(content: dict[str, Any]) -> str:
    """A table: what share of its attention each head gives to the keys of each repeat."""
    lines = [f"middle layer {content['layer']}, share of attention by repeat of the keys:"]
    repeats = range(1, content["n_repeat"] + 1)
    lines.append("head  " + "".join(f"{repeat:>9}" for repeat in repeats))
    for head, shares in content["by_repeat"].items():
        lines.append(f"{head:>4}  " + "".join(f"{share:9.4f}" for share in shares))
    return "\n".join(lines)

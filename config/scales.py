"""The experiments in sizes that fit a machine, with the paper's ratios of layers, repeats, reserved layers.

`python main.py --experiment table1/cotformer-24x5 --scale nano`. paper: as published. small: an hour on
one GPU. nano: minutes on two CPU cores. Repeats stay as they are, and so do the width of a head (but for
rounding), the shape of the schedule and, between rows, the text that is seen; layers, heads, lengths and
steps shrink by the same factor for all rows.

nano reads about as many tokens for each parameter as the paper does (2.6 million for 0.12 million of
Standard, 12 layers; 1.3 billion for 124 million), in small batches: with twice the batch and half the steps
models with repeats do worse. Its learning rate was the best of 2, 4 and 8e-3 for Standard, BUT and
CoTFormer alike; gradients are clipped, unlike the paper's, for at that rate BUT 12x5 diverged without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Scale:
    """layers, width, length, steps: fractions of the published ones. flags: what replaces the row's.

    about: for `reproduce.py list`.
    """

    about: str
    layers: Fraction = Fraction(1)
    width: Fraction = Fraction(1)
    length: Fraction = Fraction(1)
    steps: Fraction = Fraction(1)
    flags: Mapping[str, Any] | None = None


SCALES = {
    "paper": Scale("as published: OpenWebText2, days on a few GPUs a row"),
    "small": Scale(
        "about an hour on one GPU a row: OpenWebText2, half the layers and width, a quarter of the steps",
        layers=Fraction(1, 2), width=Fraction(1, 2), steps=Fraction(1, 4),
    ),
    "nano": Scale(
        "minutes on two CPU cores a row: pydoc by bytes, layers / 6, width / 12, length / 2",
        layers=Fraction(1, 6), width=Fraction(1, 12), length=Fraction(1, 2), steps=Fraction(1, 16),
        flags={
            "dataset": "pydoc", "vocab_size": 320, "batch_size": 8, "acc_steps": 1, "lr": 8e-3,
            "grad_clip": 1.0, "eval_freq": 1000, "eval_seq_prefix": None,
        },
    ),
}  # fmt: skip


def scaled(flags: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The flags of a row of `config.experiments` at a scale, by its name in SCALES.

    Reserved layers are at least one where there are any, and at least one layer is left to be repeated.
    """
    scale, made = SCALES[name], dict(flags)
    made["n_layer"] = _part(flags["n_layer"], scale.layers)
    made["n_head"] = _part(flags["n_head"], scale.width)
    made["n_embd"] = made["n_head"] * _head(flags["n_embd"] * scale.width / made["n_head"])
    made["sequence_length"] = _part(flags["sequence_length"], scale.length)
    made["iterations"] = _part(flags["iterations"], scale.steps)
    for reserved in ("n_layer_begin", "n_layer_end"):
        if flags.get(reserved):
            made[reserved] = _part(flags[reserved], scale.layers)
    reserved = made.get("n_layer_begin", 0) + made.get("n_layer_end", 0)
    made["n_layer"] = max(made["n_layer"], reserved + 1)
    return made | dict(scale.flags or {})


def _part(number: int | Fraction, fraction: Fraction) -> int:
    return max(1, round(number * fraction))


def _head(width: Fraction) -> int:
    """A head's width in eights, as kernels like it."""
    return 8 * _part(width, Fraction(1, 8))

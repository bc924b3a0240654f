"""The table of model variants: what `--model` may be, and which parts each variant is made of.

No torch here: the command line reads this table to refuse a wrong name before torch is imported.
"""

from dataclasses import dataclass

from errors import UsageError, unknown


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    name: the value of --model; checkpoints and folders carry it.
    alias: a short name for the same.
    paper_name: what the paper's tables call it.
    repeater: key into `models.repeaters.REPEATERS`: what the middle blocks do.
    repeats: whether n_repeat and the reserved layers (n_layer_begin, n_layer_end) apply.
    depth_parts: whether the depth embedding and the LayerNorm ln_mid apply.
    """

    name: str
    alias: str
    paper_name: str
    repeater: str
    repeats: bool = True
    depth_parts: bool = False


VARIANTS = (
    Variant("base", "standard", "Standard", "once", repeats=False),
    Variant("but_full_depth", "but", "Block Universal Transformer", "universal"),
    Variant("cotformer_full_depth", "cotformer", "CoTFormer", "cross_repeat"),
    Variant("cotformer_full_depth_lnmid_depthemb", "ln_cotformer", "LN-CoTFormer", "cross_repeat",
            depth_parts=True),
)  # fmt: skip


def accepted_names() -> list[str]:
    """Every value that --model takes: the names in the order of the table, then the aliases."""
    return [variant.name for variant in VARIANTS] + [variant.alias for variant in VARIANTS]


def find_variant(name: str) -> Variant:
    """The variant called `name` (or so aliased). Raises UsageError, with the nearest name, for another."""
    for variant in VARIANTS:
        if name in (variant.name, variant.alias):
            return variant
    raise UsageError(unknown(f"--model {name}: unknown model", name, accepted_names()))

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
    repeater: key into `models.language_model.REPEATERS`: how the middle blocks are repeated.
    features: a flag whose `read_by` is one of them applies to the variant (`models.config`).
    sees_all_passes: whether pass r attends to the keys of passes 1..r (Eq. 3), not to its own alone.
    halted_tokens_offer_keys: whether passes compute keys and values of tokens that halted before.
    single_precision_capacities: whether the released code rounds its capacities in float32.
    attention: key into `models.attention.ATTENTIONS`: multi-head (mha) or multi-head latent attention (mla).
    """

    name: str
    alias: str
    paper_name: str
    repeater: str
    features: tuple[str, ...] = ("repeats",)
    sees_all_passes: bool = False
    halted_tokens_offer_keys: bool = False
    single_precision_capacities: bool = False
    attention: str = "mha"

    @property
    def repeats(self) -> bool:
        return "repeats" in self.features

    @property
    def depth_parts(self) -> bool:
        """Whether the depth embedding and the LayerNorm ln_mid apply."""
        return "depth_parts" in self.features

    @property
    def routed(self) -> bool:
        """Whether routers decide which tokens take the next pass."""
        return "routing" in self.features

    @property
    def pauses(self) -> bool:
        """Whether pause tokens follow each token of the text."""
        return "pauses" in self.features

    @property
    def has_halting_gate(self) -> bool:
        """Whether a gate decides after each pass whether a token halts (stick breaking)."""
        return "stick_breaking" in self.features

    @property
    def stops_early(self) -> bool:
        """Whether a pass may compute only some of the tokens."""
        return self.routed or self.has_halting_gate

    @property
    def predicts_every_pass(self) -> bool:
        """Whether there is a prediction after every pass, not only after the last."""
        return "ponder" in self.features


_LN = ("repeats", "depth_parts")
_ROUTED = (*_LN, "routing")
_ADAPTIVE_BUT = "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor"

VARIANTS = [
    Variant("base", "standard", "Standard", "once", ()),
    Variant("but_full_depth", "but", "Block Universal Transformer", "universal"),
    Variant("cotformer_full_depth", "cotformer", "CoTFormer", "cross_repeat", sees_all_passes=True),
    Variant("cotformer_full_depth_lnmid_depthemb", "ln_cotformer", "LN-CoTFormer", "cross_repeat", _LN,
            sees_all_passes=True),
    Variant("adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final", "adm",
            "Adaptive LN-CoTFormer", "mixture_of_repeats", _ROUTED, sees_all_passes=True),
    Variant(_ADAPTIVE_BUT, "adaptive_but", "Adaptive BUT", "routed_universal", _ROUTED,
            halted_tokens_offer_keys=True, single_precision_capacities=True),
    # A copy that the released code uses to count MACs; the name is accepted for old command lines.
    Variant(f"{_ADAPTIVE_BUT}_for_mac_compute", "adaptive_but_macs", "Adaptive BUT", "routed_universal",
            _ROUTED, halted_tokens_offer_keys=True, single_precision_capacities=True),
    Variant("but_halting_freeze_input_on_stop", "stick_breaking", "Stick breaking", "stick_breaking",
            ("repeats", "stick_breaking"), halted_tokens_offer_keys=True),
    Variant("pondernet", "pondernet", "PonderNet", "ponder", ("repeats", "ponder")),
    Variant("mla_ln_cotformer", "mla", "LN-CoTFormer with latent attention", "cross_repeat",
            (*_LN, "latent"), sees_all_passes=True, attention="mla"),
    Variant("pause", "pause", "Pause tokens", "once", ("pauses",)),
]  # fmt: skip


def accepted_names() -> list[str]:
    """Every value that --model takes: the names in the order of the table, then the aliases."""
    names = [variant.name for variant in VARIANTS] + [variant.alias for variant in VARIANTS]
    return list(dict.fromkeys(names))


def find_variant(name: str) -> Variant:
    """The variant called `name` (or so aliased). Raises UsageError, with the nearest name, for another."""
    for variant in VARIANTS:
        if name in (variant.name, variant.alias):
            return variant
    raise UsageError(unknown(f"--model {name}: unknown model", name, accepted_names()))

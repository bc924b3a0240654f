"""The table of model variants: what `--model` may be, and which parts each variant is made of.

No torch here: the command line reads this table to refuse a wrong name before torch is imported.
"""

from dataclasses import dataclass

from errors import UsageError, unknown

# Fields of `models.config.ModelConfig` that only some variants read.
REPEATS = ("n_repeat", "n_layer_begin", "n_layer_end")
DEPTH_PARTS = ("depth_embedding", "disable_ln_mid")
ROUTING = (
    "depth_random_method", "training_length_factor", "eval_length_factor", "routing", "routing_threshold",
)  # fmt: skip
STICK_BREAKING = ("halt_threshold", "depth_predictor_loss_coef", "act_penalty", "act_loss_reduction")
PONDER = ("ponder_lambda_p", "ponder_kl_div_loss_weight", "ponder_eval")
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
PAUSE = ("n_pause",)
OPTIONAL = REPEATS + DEPTH_PARTS + ROUTING + STICK_BREAKING + PONDER + LATENT + PAUSE


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    name: the value of --model; checkpoints and folders carry it.
    alias: a short name for the same.
    paper_name: what the paper's tables call it.
    repeater: key into `models.language_model.REPEATERS`: what the middle blocks do.
    reads: those of the OPTIONAL fields that apply.
    single_precision_capacities: whether the released code rounds its capacities in float32.
    attention: key into `models.block.ATTENTIONS`: multi-head (mha) or multi-head latent attention (mla).
    """

    name: str
    alias: str
    paper_name: str
    repeater: str
    reads: tuple[str, ...] = REPEATS
    single_precision_capacities: bool = False
    attention: str = "mha"

    @property
    def repeats(self) -> bool:
        return "n_repeat" in self.reads

    @property
    def depth_parts(self) -> bool:
        """Whether the depth embedding and the LayerNorm ln_mid apply."""
        return "disable_ln_mid" in self.reads

    @property
    def routed(self) -> bool:
        """Whether routers decide by token who takes the next pass."""
        return "routing" in self.reads

    @property
    def pauses(self) -> bool:
        """Whether pause tokens stand behind each token of the text."""
        return "n_pause" in self.reads

    @property
    def stops_early(self) -> bool:
        """Whether passes are computed for some of the tokens only."""
        return self.routed or "halt_threshold" in self.reads


_ROUTED = REPEATS + DEPTH_PARTS + ROUTING
_ADAPTIVE_BUT = "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor"

VARIANTS = (
    Variant("base", "standard", "Standard", "once", ()),
    Variant("but_full_depth", "but", "Block Universal Transformer", "universal"),
    Variant("cotformer_full_depth", "cotformer", "CoTFormer", "cross_repeat"),
    Variant("cotformer_full_depth_lnmid_depthemb", "ln_cotformer", "LN-CoTFormer", "cross_repeat",
            REPEATS + DEPTH_PARTS),
    Variant("adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final", "adm",
            "Adaptive LN-CoTFormer", "mixture_of_repeats", _ROUTED),
    Variant(_ADAPTIVE_BUT, "adaptive_but", "Adaptive BUT", "routed_universal", _ROUTED,
            single_precision_capacities=True),
    # The released code has a copy of the same for counting; the name exists so that old commands keep
    # working.
    Variant(f"{_ADAPTIVE_BUT}_for_mac_compute", "adaptive_but_macs", "Adaptive BUT", "routed_universal",
            _ROUTED, single_precision_capacities=True),
    Variant("but_halting_freeze_input_on_stop", "stick_breaking", "Stick breaking", "stick_breaking",
            REPEATS + STICK_BREAKING),
    Variant("pondernet", "pondernet", "PonderNet", "ponder", REPEATS + PONDER),
    Variant("mla_ln_cotformer", "mla", "LN-CoTFormer with latent attention", "cross_repeat",
            REPEATS + DEPTH_PARTS + LATENT, attention="mla"),
    Variant("pause", "pause", "Pause tokens", "once", PAUSE),
)  # fmt: skip


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

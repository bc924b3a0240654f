"""Sizes and parts of a network, as one frozen value that refuses impossible combinations. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from errors import UsageError
from flags import PROBABILITY, RATE, Bound, Identity, at_least, check, choice, flag, flags_of
from models.capacities import DRAWS, check_factors
from models.variants import Variant, accepted_names, find_variant

# Identity.ALWAYS is for flags that run names had from the start: a new one with it would rename every run.
_size = partial(flag, group="Model architecture", identity=Identity.ALWAYS)
_exact = partial(flag, group="Model architecture", identity=Identity.NEVER)
_repeat = partial(flag, group="CoTFormer", identity=Identity.ALWAYS, read_by="repeats")
_depth = partial(flag, group="CoTFormer", identity=Identity.ALWAYS, read_by="depth_parts")
_routing = partial(flag, group="Adaptive depth", read_by="routing")
_halting = partial(flag, group="Adaptive depth", read_by="stick_breaking", identity=Identity.WHEN_READ)
_ponder = partial(flag, group="Adaptive depth", read_by="ponder", identity=Identity.WHEN_READ)
_latent = partial(
    flag, group="Latent attention", read_by="latent", identity=Identity.WHEN_READ, bound=at_least(1)
)
_position = partial(flag, group="Positional encoding and cache", identity=Identity.ALWAYS)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of a language model; the fields are flags of the command line.

    A field that the variant does not read (n_repeat of `base`, say) is accepted and ignored, as in the
    released code, so that one command line serves all variants: see `unused_fields`.

    Raises:
        UsageError: a value, or a combination of values, is impossible.
    """

    model: str = _size("base", ", ".join(accepted_names()), read=lambda text: choice(accepted_names())(text))
    n_layer: int = _size(24, "transformer blocks, each counted once however often it runs", bound=at_least(1))
    n_embd: int = _size(768, "width C of the residual stream", bound=at_least(1))
    n_head: int = _size(12, "attention heads; a head is n_embd / n_head wide", bound=at_least(1))
    sequence_length: int = _size(512, "tokens T of a training sequence; the paper: 256", bound=at_least(1))
    vocab_size: int = flag(
        50304, "rows of the embedding: the tokenizer's vocabulary, best rounded up to a multiple of 64",
        group="Dataset", bound=at_least(1), identity=Identity.ALWAYS,
    )  # fmt: skip
    bias: bool = _size(False, "true or false: whether Linear and LayerNorm layers have biases", implied=True)
    dropout: float = _size(
        0.0, "dropout rate after embedding, attention and MLP; off in evaluation", bound=RATE
    )
    attention: str = _exact(
        "fast", "fast: the fastest known form for the device, on CPUs in bfloat16 blocks of matrix products; "
        "plain: PyTorch's attention, and rotary positions by their formula; masked: the keys and values of "
        "all passes in one buffer, with one bias a pass; flash: the same without a bias, pass by pass, where "
        "all passes have the same tokens; flex: FlexAttention with a block mask. The same "
        "result, up to rounding",
        choices=("fast", "plain", "masked", "flash", "flex"),
    )  # fmt: skip
    loss: str = _exact(
        "chunked", "chunked: the logits of a few hundred tokens at a time, with their gradients; plain: the "
        "logits of all tokens at once. The same loss, up to rounding",
        choices=("chunked", "plain"),
    )  # fmt: skip
    activation_checkpointing: str = _exact(
        "none", "activations that the backward pass recomputes instead of keeping: none, each pass of the "
        "middle (repeat), or each block (block). The same gradients",
        choices=("none", "repeat", "block"),
    )  # fmt: skip

    n_repeat: int = _repeat(2, "passes R through the middle blocks", bound=at_least(1))
    n_layer_begin: int = _repeat(0, "blocks before the middle, run once; the paper: 2", bound=at_least(0))
    n_layer_end: int = _repeat(0, "blocks after the middle, run once; the paper: 1", bound=at_least(0))
    depth_embedding: str | None = _depth(
        None, "added before each pass: linear_learned (a vector times the passes left) or learned (a table)",
        choices=("linear_learned", "learned"),
    )  # fmt: skip
    disable_ln_mid: bool = _depth(False, "LN-CoTFormer without its LayerNorm after each pass")

    depth_random_method: str = _routing(
        "uniform", f"how training draws the capacities of a forward pass: {', '.join(DRAWS)}; any other "
        "name means uniform, as in the released code",
        identity=Identity.WHEN_READ,
    )  # fmt: skip
    training_length_factor: Sequence[float] | None = _routing(
        None, "train with these R - 1 capacities instead of drawn ones", identity=Identity.WHEN_READ
    )
    eval_length_factor: Sequence[float] | None = _routing(
        None, "evaluate with these R - 1 capacities, the fractions of tokens that take passes 2..R; None: "
        "all",
        identity=Identity.NEVER,
    )  # fmt: skip
    routing: str = _routing(
        "topk", "routing in evaluation: topk (the best tokens of each sequence, which uses later tokens) or "
        "threshold (causal)",
        choices=("topk", "threshold"), identity=Identity.NEVER,
    )  # fmt: skip
    routing_threshold: Sequence[float] | None = _routing(
        None, "the R - 1 thresholds of --routing threshold; None: found by calibrate.py for "
        "--eval_length_factor",
        identity=Identity.NEVER,
    )  # fmt: skip
    halt_threshold: float = _halting(
        0.999, "a token halts when its probability of having halted exceeds this", bound=PROBABILITY
    )
    depth_predictor_loss_coef: float | None = _halting(
        None, "weight of the ACT loss (expected depth); None: 0.03", bound=at_least(0)
    )
    act_penalty: float | None = _halting(
        None,
        "the same under the name that the released code saves; wins if both are given",
        bound=at_least(0),
    )
    act_loss_reduction: str = _halting(
        "mean",
        "the ACT loss is a mean over tokens, or the sum over a micro-batch, as in the released code: its "
        "weight then depends on --batch_size",
        choices=("mean", "sum"),
    )
    ponder_lambda_p: float = _ponder(
        0.4, "halting probability of the geometric prior; the paper: 0.4", bound=PROBABILITY
    )
    ponder_kl_div_loss_weight: float = _ponder(
        0.01, "weight of the KL divergence from the prior", bound=at_least(0)
    )
    ponder_eval: str = _ponder(
        "expectation", "evaluate the expectation over halting steps, or a drawn step (sample)",
        choices=("expectation", "sample"), identity=Identity.NEVER,
    )  # fmt: skip

    kv_lora_rank: int = _latent(
        192, "width of the latent from which the keys and values of all heads are made, and which is cached"
    )
    q_lora_rank: int = _latent(384, "width of the latent from which queries are made")
    qk_rope_head_dim: int = _latent(
        32, "part of a query or key that is rotated by its position; the heads share the key's"
    )
    qk_nope_head_dim: int = _latent(64, "part of a head's query or key that is not rotated")
    v_head_dim: int = _latent(64, "width of a head's value")
    n_pause: int = flag(
        4, "learned pause tokens after each token of the text; the last one predicts the next token. "
        "--sequence_length counts the text alone",
        group="Pause tokens", read_by="pauses", identity=Identity.WHEN_READ, bound=at_least(1),
    )  # fmt: skip

    positional_encoder: str = _position("rotary", "rotary or none", choices=("rotary", "none"))
    attention_window_length: int | None = _position(
        None,
        "a token attends to this many positions, its own included; None: all before it",
        bound=Bound(lambda length: length >= 1, "must be at least 1 or None"),
    )

    def __post_init__(self) -> None:
        find_variant(self.model)
        check(MODEL_FLAGS, vars(self), "{}={}")
        latent = self.variant.attention == "mla"
        if not latent and self.n_embd % self.n_head:
            raise UsageError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if self.positional_encoder == "rotary" and self.rotary_size % 2:
            what = "qk_rope_head_dim" if latent else "n_embd / n_head"
            raise UsageError(
                f"rotary positions rotate pairs of numbers: {what} = {self.rotary_size} must be even"
            )
        for name in ("training_length_factor", "eval_length_factor"):
            if getattr(self, name) is not None:
                check_factors(name, getattr(self, name), self.n_repeat)
        thresholds = self.routing_threshold
        if thresholds is not None and len(thresholds) != self.n_repeat - 1:
            raise UsageError(
                f"--routing_threshold has {len(thresholds)} numbers; n_repeat={self.n_repeat} has "
                f"{self.n_repeat - 1} routers, one for each pass but the last"
            )
        if self.variant.repeats and self.n_layer_begin + self.n_layer_end >= self.n_layer:
            raise UsageError(
                f"n_layer_begin={self.n_layer_begin} and n_layer_end={self.n_layer_end} leave no layer "
                f"to repeat out of n_layer={self.n_layer}"
            )

    @classmethod
    def from_args(cls, args: Any) -> "ModelConfig":
        """Read the fields from a namespace; one that it lacks, or that is None there, keeps its default."""
        values = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if value is not None})

    @property
    def variant(self) -> Variant:
        return find_variant(self.model)

    @property
    def rotary_size(self) -> int:
        """Numbers of a head's query or key that rotary positions rotate."""
        return self.qk_rope_head_dim if self.variant.attention == "mla" else self.n_embd // self.n_head

    @property
    def attention_head_size(self) -> int:
        """Numbers of a head's query, key and value in the attention kernel, the shorter padded with zeros."""
        if self.variant.attention == "mla":
            return max(self.qk_nope_head_dim + self.qk_rope_head_dim, self.v_head_dim)
        return self.n_embd // self.n_head

    @property
    def layers(self) -> tuple[int, int, int]:
        """Number of blocks before, inside and after the repeated middle."""
        if not self.variant.repeats:
            return 0, self.n_layer, 0
        return self.n_layer_begin, self.n_layer - self.n_layer_begin - self.n_layer_end, self.n_layer_end

    @property
    def repeats(self) -> int:
        """Passes through the middle that a token can take."""
        return self.n_repeat if self.variant.repeats else 1

    @property
    def positions_per_token(self) -> int:
        """Positions that a token of the text occupies: itself and its pause tokens."""
        return 1 + self.n_pause if self.variant.pauses else 1

    @property
    def exits(self) -> int:
        """Representations of a token that the end blocks run on: PonderNet predicts after every pass."""
        return self.n_repeat if self.variant.predicts_every_pass else 1

    @property
    def penalty_weight(self) -> float:
        """Weight of stick breaking's ACT loss; 0.03 is the released code's default.

        The released code saves `act_penalty` together with the depth_predictor_loss_coef that it replaces.
        """
        given = [value for value in (self.act_penalty, self.depth_predictor_loss_coef) if value is not None]
        return given[0] if given else 0.03

    @property
    def has_ln_mid(self) -> bool:
        return self.variant.depth_parts and not self.disable_ln_mid

    @property
    def has_depth_embedding(self) -> bool:
        return self.variant.depth_parts and self.depth_embedding is not None

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """The fields that this variant does not read."""
        return tuple(one.name for one in MODEL_FLAGS if one.read_by not in (None, *self.variant.features))


MODEL_FLAGS = flags_of(ModelConfig)

"""What a network is made of, as one frozen value that refuses impossible combinations. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from errors import UsageError
from models.capacities import check_factors
from models.variants import LATENT, OPTIONAL, PAUSE, Variant, find_variant

DEPTH_EMBEDDINGS = (None, "linear_learned", "learned")
POSITIONAL_ENCODERS = ("rotary", "none")
CHOICES = {
    "routing": ("topk", "threshold"),
    "act_loss_reduction": ("mean", "sum"),
    "ponder_eval": ("expectation", "sample"),
    "attention": ("fast", "plain"),
    "loss": ("chunked", "plain"),
    "activation_checkpointing": ("none", "repeat", "block"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of a language model; the field names are those of the command line.

    Raises UsageError with one sentence when a value, or a combination of values, is impossible.
    A field that the variant has no use for (n_repeat of `base`, say) is accepted and ignored, as in the
    released code, so that one command line serves all variants: see `unused_fields`.
    """

    model: str = "base"
    vocab_size: int = 50304
    sequence_length: int = 512
    n_layer: int = 24
    n_head: int = 12
    n_embd: int = 768
    bias: bool = False
    dropout: float = 0.0
    positional_encoder: str = "rotary"
    attention_window_length: int | None = None
    n_repeat: int = 2
    n_layer_begin: int = 0
    n_layer_end: int = 0
    depth_embedding: str | None = None
    disable_ln_mid: bool = False
    depth_random_method: str = "uniform"
    training_length_factor: Sequence[float] | None = None
    eval_length_factor: Sequence[float] | None = None
    routing: str = "topk"
    routing_threshold: Sequence[float] | None = None
    halt_threshold: float = 0.999
    depth_predictor_loss_coef: float | None = None
    act_penalty: float | None = None
    act_loss_reduction: str = "mean"
    ponder_lambda_p: float = 0.4
    ponder_kl_div_loss_weight: float = 0.01
    ponder_eval: str = "expectation"
    kv_lora_rank: int = 192
    q_lora_rank: int = 384
    qk_rope_head_dim: int = 32
    qk_nope_head_dim: int = 64
    v_head_dim: int = 64
    n_pause: int = 4
    attention: str = "fast"
    loss: str = "chunked"
    activation_checkpointing: str = "none"

    def __post_init__(self) -> None:
        find_variant(self.model)
        sizes = ("vocab_size", "sequence_length", "n_layer", "n_head", "n_embd", "n_repeat")
        for name in (*sizes, *LATENT, *PAUSE):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("n_layer_begin", "n_layer_end"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")
        latent = self.variant.attention == "mla"
        if not latent and self.n_embd % self.n_head:
            raise UsageError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.positional_encoder not in POSITIONAL_ENCODERS:
            raise UsageError(
                f"positional_encoder={self.positional_encoder} is unknown; "
                f"choose from {', '.join(POSITIONAL_ENCODERS)}"
            )
        if self.positional_encoder == "rotary" and self.turning_size % 2:
            what = "qk_rope_head_dim" if latent else "n_embd / n_head"
            raise UsageError(
                f"rotary positions turn pairs of numbers: {what} = {self.turning_size} must be even"
            )
        if self.attention_window_length is not None and self.attention_window_length < 1:
            raise UsageError(
                f"attention_window_length={self.attention_window_length} must be at least 1 or None"
            )
        if self.depth_embedding not in DEPTH_EMBEDDINGS:
            raise UsageError(
                f"depth_embedding={self.depth_embedding} is unknown; "
                f"choose from {', '.join(map(str, DEPTH_EMBEDDINGS))}"
            )
        for name in CHOICES:
            if getattr(self, name) not in CHOICES[name]:
                raise UsageError(
                    f"{name}={getattr(self, name)} is unknown; choose from {', '.join(CHOICES[name])}"
                )
        for name in ("halt_threshold", "ponder_lambda_p"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UsageError(f"{name}={getattr(self, name)} is a probability, above 0 and below 1")
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
    def turning_size(self) -> int:
        """How many numbers of a head's query or key turn with the position, where positions are rotary."""
        return self.qk_rope_head_dim if self.variant.attention == "mla" else self.n_embd // self.n_head

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
    def rows_per_token(self) -> int:
        """What a token of the text is to the network: itself, and the pauses behind it."""
        return 1 + self.n_pause if self.variant.pauses else 1

    @property
    def exits(self) -> int:
        """Representations of a token that the end blocks run on: PonderNet predicts after every pass."""
        return self.n_repeat if self.variant.repeater == "ponder" else 1

    @property
    def penalty_weight(self) -> float:
        """Of stick breaking's ACT loss; 0.03 is the released code's.

        `act_penalty` stands in its runs' files beside a depth_predictor_loss_coef that it had replaced.
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
        return tuple(name for name in OPTIONAL if name not in self.variant.reads)

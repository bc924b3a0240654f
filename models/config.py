"""What a network is made of, as one frozen value that refuses impossible combinations. No torch here."""

from dataclasses import dataclass, fields
from typing import Any

from errors import UsageError
from models.variants import Variant, find_variant

DEPTH_EMBEDDINGS = (None, "linear_learned", "learned")
POSITIONAL_ENCODERS = ("rotary", "none")


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

    def __post_init__(self) -> None:
        find_variant(self.model)
        for name in ("vocab_size", "sequence_length", "n_layer", "n_head", "n_embd", "n_repeat"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("n_layer_begin", "n_layer_end"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")
        if self.n_embd % self.n_head:
            raise UsageError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.positional_encoder not in POSITIONAL_ENCODERS:
            raise UsageError(
                f"positional_encoder={self.positional_encoder} is unknown; "
                f"choose from {', '.join(POSITIONAL_ENCODERS)}"
            )
        if self.positional_encoder == "rotary" and self.head_size % 2:
            raise UsageError(
                f"rotary positions turn pairs of numbers: n_embd / n_head = {self.head_size} must be even"
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
        if self.variant.repeats and self.n_layer_begin + self.n_layer_end >= self.n_layer:
            raise UsageError(
                f"n_layer_begin={self.n_layer_begin} and n_layer_end={self.n_layer_end} leave no layer "
                f"to repeat out of n_layer={self.n_layer}"
            )

    @classmethod
    def from_args(cls, args: Any) -> "ModelConfig":
        """Read the fields from a namespace; one that it lacks keeps its default."""
        return cls(
            **{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
        )

    @property
    def variant(self) -> Variant:
        return find_variant(self.model)

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def layers(self) -> tuple[int, int, int]:
        """Number of blocks before, inside and after the repeated middle."""
        if not self.variant.repeats:
            return 0, self.n_layer, 0
        return self.n_layer_begin, self.n_layer - self.n_layer_begin - self.n_layer_end, self.n_layer_end

    @property
    def has_ln_mid(self) -> bool:
        return self.variant.depth_parts and not self.disable_ln_mid

    @property
    def has_depth_embedding(self) -> bool:
        return self.variant.depth_parts and self.depth_embedding is not None

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """The fields that this variant does not read."""
        depth = () if self.variant.depth_parts else ("depth_embedding", "disable_ln_mid")
        return depth if self.variant.repeats else ("n_repeat", "n_layer_begin", "n_layer_end", *depth)

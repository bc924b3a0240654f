"""What is to be measured: sizes, models, and how thoroughly. No torch here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from config.scales import scaled
from models.config import ModelConfig
from models.variants import VARIANTS, find_variant

T = TypeVar("T")
Row = dict[str, Any]
Done = dict[tuple[str, str], list[Row]]  # rows of each case, by part and name

# Its twin without a difference to measure.
MODELS = tuple(variant.alias for variant in VARIANTS if variant.alias != "adaptive_but_macs")
QUICK_MODELS = ("standard", "ln_cotformer", "adm")

PAPER: Mapping[str, Any] = {
    "n_layer": 24, "n_layer_begin": 2, "n_layer_end": 1, "n_repeat": 5, "n_embd": 768, "n_head": 12,
    "vocab_size": 50304, "sequence_length": 256, "iterations": 40_000,
}  # fmt: skip
DTYPES = ("float32", "bfloat16")
DEFAULT_SIZES = {"full": ("baseline", "nano"), "quick": ("nano",), "tiny": ("tiny",)}
MODEL_FIELDS = tuple(name for name in PAPER if name != "iterations")


class Size(NamedTuple):
    """flags: of ModelConfig. batch: sequences of a micro-batch."""

    flags: Mapping[str, Any]
    batch: int
    about: str


def _of_the_model(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: flags[name] for name in MODEL_FIELDS}


SIZES = {
    "baseline": Size(
        {"n_layer": 8, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 3, "n_embd": 256, "n_head": 8,
         "vocab_size": 50304, "sequence_length": 256},
        4, "1 -> 6x3 -> 1, width 256: that of the measurements of the released code",
    ),
    "nano": Size(_of_the_model(scaled(PAPER, "nano")), 16, "--scale nano of config/scales.py"),
    "paper": Size(_of_the_model(PAPER), 8, "2 -> 21x5 -> 1, width 768, 256 tokens: for GPUs"),
    "tiny": Size(
        {"n_layer": 3, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 2, "n_embd": 16, "n_head": 2,
         "vocab_size": 64, "sequence_length": 16},
        2, "for tests of the suite itself",
    ),
}  # fmt: skip


def model_config(model: str, size: Mapping[str, Any], **more: Any) -> ModelConfig:
    """size: `Size.flags`. Latent attention shrinks with the width from the paper's size, where it has its
    defaults. more: other fields, which win."""
    head = size["n_embd"] // size["n_head"]
    latent = {
        "kv_lora_rank": size["n_embd"] // 4, "q_lora_rank": size["n_embd"] // 2,
        "qk_rope_head_dim": max(2, head // 4 * 2), "qk_nope_head_dim": head, "v_head_dim": head,
    }  # fmt: skip
    flags = {"depth_embedding": "linear_learned", **latent, **size, **more}
    return ModelConfig(model=find_variant(model).name, **flags)


@dataclass(frozen=True)
class Plan:
    """effort: full, quick or tiny. threads: None for torch's default. baseline: the released code's file.

    run_dtype: of the parts that look at one number format only: what a run would choose on this device.
    sizes_chosen: whether `sizes` were asked for by name.
    """

    models: tuple[str, ...]
    sizes: tuple[str, ...]
    dtypes: tuple[str, ...]
    device: str
    threads: int | None
    repeats: int
    effort: str
    run_dtype: str
    baseline: str | None = None
    sizes_chosen: bool = False

    @property
    def main_sizes(self) -> tuple[str, ...]:
        """Of the parts that look at one size where none is asked for."""
        return self.sizes if self.sizes_chosen else (self.main_size_name,)

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """What fits the effort."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.effort]

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are among the plan's models."""
        return [name for name in names if name in self.models]

    @property
    def main_size_name(self) -> str:
        """Of the parts that look at one size only; it stands in the names of their rows."""
        return self.pick("baseline", "nano", "tiny")

    @property
    def main_size(self) -> Size:
        return SIZES[self.main_size_name]


class Case(NamedTuple):
    """One step of the suite: `measure()` makes its rows."""

    name: str
    measure: Callable[[], list[Row]]

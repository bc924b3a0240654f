"""A plan: which models, sizes and number formats are measured, and how thoroughly. No torch here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from bench.processes import Measured, in_own_process
from config.scales import scaled
from models.config import ModelConfig
from models.variants import VARIANTS, find_variant

T = TypeVar("T")
Result = dict[str, Any]  # its form: bench.results

# Without `adaptive_but_macs`, which computes the same as `adaptive_but`.
MODELS = tuple(variant.alias for variant in VARIANTS if variant.alias != "adaptive_but_macs")
QUICK_MODELS = ("standard", "ln_cotformer", "adm")
TINY_MODELS = ("cotformer", "adm")
PAPER: Mapping[str, Any] = {
    "n_layer": 24, "n_layer_begin": 2, "n_layer_end": 1, "n_repeat": 5, "n_embd": 768, "n_head": 12,
    "vocab_size": 50304, "sequence_length": 256, "iterations": 40_000,
}  # fmt: skip
DTYPES = ("float32", "bfloat16")


class Size(NamedTuple):
    """flags: fields of ModelConfig. batch: sequences of a micro-batch."""

    flags: Mapping[str, Any]
    batch: int
    about: str

    @property
    def length(self) -> int:
        return self.flags["sequence_length"]

    @property
    def full_depth(self) -> list[float]:
        """The capacities at which every token takes every pass."""
        return [1.0] * (self.flags["n_repeat"] - 1)

    def but(self, **flags: Any) -> "Size":
        """The same size with other flags."""
        return self._replace(flags={**self.flags, **flags})


def _model_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: flags[name] for name in PAPER if name != "iterations"}


SIZES = {
    "baseline": Size(
        {"n_layer": 8, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 3, "n_embd": 256, "n_head": 8,
         "vocab_size": 50304, "sequence_length": 256},
        4, "1 -> 6x3 -> 1, width 256: the size at which the released code was measured",
    ),
    "nano": Size(_model_flags(scaled(PAPER, "nano")), 16, "--scale nano of config/scales.py"),
    "paper": Size(_model_flags(PAPER), 8, "2 -> 21x5 -> 1, width 768, 256 tokens: for GPUs"),
    "tiny": Size(
        {"n_layer": 3, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 2, "n_embd": 16, "n_head": 2,
         "vocab_size": 64, "sequence_length": 16},
        2, "for tests of the suite itself",
    ),
}  # fmt: skip


def model_flags(model: str, size: Size) -> dict[str, Any]:
    """The flags of a model at a size. The ranks and head dimensions of latent attention have the ratios to
    the width that their defaults have at the paper's size."""
    width = size.flags["n_embd"]
    head = width // size.flags["n_head"]
    latent = {
        "kv_lora_rank": width // 4, "q_lora_rank": width // 2, "qk_rope_head_dim": max(2, head // 4 * 2),
        "qk_nope_head_dim": head, "v_head_dim": head,
    }  # fmt: skip
    return {"model": find_variant(model).name, "depth_embedding": "linear_learned", **latent, **size.flags}


def model_config(model: str, size: Size) -> ModelConfig:
    return ModelConfig(**model_flags(model, size))


@dataclass(frozen=True)
class Plan:
    """effort: full, quick or tiny. threads: torch's; None: its default. sizes: None for each part's default.

    default_dtype: for parts that measure one number format: the one that training would choose here.
    """

    models: tuple[str, ...]
    sizes: tuple[str, ...] | None
    dtypes: tuple[str, ...]
    device: str
    threads: int | None
    repeats: int
    effort: str
    default_dtype: str

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def main_size(self) -> str:
        """The size of the parts that measure only one; their results are named after it."""
        return self.pick("baseline", "nano", "tiny")

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """The value for this effort."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.effort]

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The plan's models among `names`."""
        return [name for name in names if name in self.models]

    def isolated(self, function: Callable[..., Any], *arguments: Any) -> Measured:
        """`function(*arguments)` in a process of its own, with the plan's threads: see `in_own_process`."""
        return in_own_process(function, *arguments, threads=self.threads)


class Case(NamedTuple):
    """One step of the suite: `measure()` makes its results."""

    name: str
    measure: Callable[[], list[Result]]

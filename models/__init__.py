"""The networks: `make_model_from_args` builds any of the `registered_models`.

Importing the package is cheap; torch is imported when the first model is built, so that the command line can
check names and sizes (models.variants, models.config) at once.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errors import UsageError
from models.config import ModelConfig
from models.variants import VARIANTS, Variant, accepted_names

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from models.language_model import LanguageModel
    from models.macs import Macs
    from models.repeaters import Repeater

__all__ = [
    "ModelConfig", "cache_bytes_per_token", "count_macs", "from_pretrained", "import_original_state_dict",
    "make_model_from_args", "register_variant", "registered_models",
]  # fmt: skip


def registered_models() -> list[str]:
    """Every name that `--model` accepts: full names first, then the aliases."""
    return accepted_names()


def register_variant(variant: Variant, repeater: "type[Repeater] | None" = None) -> None:
    """Add a variant from outside the package: `--model` accepts its names from now on.

    Args:
        repeater: the class that runs the middle blocks, if `variant.repeater` is a new name.

    Raises:
        UsageError: a name is taken.
    """
    from models.language_model import REPEATERS

    for name in (variant.name, variant.alias):
        if name in accepted_names():
            raise UsageError(f"there is already a variant {name}; give the new one another name")
    if (repeater is not None) == (variant.repeater in REPEATERS):
        known = "is taken; choose another name" if repeater else "is unknown; give its class"
        raise UsageError(f"the repeater {variant.repeater} of {variant.name} {known}")
    if repeater is not None:
        REPEATERS[variant.repeater] = repeater
    VARIANTS.append(variant)


def make_model_from_args(args: Any) -> "LanguageModel":
    """Build the freshly initialised model that a namespace of flags describes (fields: `ModelConfig`).

    Raises UsageError for an unknown model or impossible sizes.
    """
    from models.language_model import LanguageModel

    return LanguageModel(ModelConfig.from_args(args))


def from_pretrained(folder: "str | Path") -> "LanguageModel":
    """The trained model in a folder that `python export.py` wrote, on the CPU, in evaluation mode.

    Raises UsageError for a folder that is no model's, Failure for a damaged one.
    """
    from models import pretrained

    return pretrained.from_pretrained(folder)


def count_macs(
    args: Any,
    sequence_length: int,
    length_factors: "Sequence[float] | None" = None,
    convention: str = "paper",
) -> "Macs":
    """Multiply-accumulates of one forward pass over one sequence: see `models.macs.count_macs`."""
    from models import macs

    return macs.count_macs(args, sequence_length, length_factors, convention)


def cache_bytes_per_token(args: Any, dtype: Any = "torch.bfloat16", attention: str | None = None) -> int:
    """Bytes of the KV cache for each token of a text: see `models.macs.cache_bytes_per_token`."""
    from models import macs

    return macs.cache_bytes_per_token(args, dtype, attention)


def import_original_state_dict(state_dict: "Mapping[str, Tensor]", args: Any) -> "dict[str, Tensor]":
    """Turn weights of the released code into those that `load_state_dict(strict=True)` takes for `args`.

    Raises UsageError when the weights contradict one another.
    """
    from models.import_released import import_released

    return import_released(state_dict, ModelConfig.from_args(args))

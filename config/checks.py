"""Values of flags that are refused, each with a sentence, and notes about flags without effect."""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from config.base import all_flags
from errors import UsageError
from flags import check
from models.config import MODEL_FLAGS, ModelConfig
from models.macs import ATTENTION_COSTS

LONGEST_NAME = 150  # characters; file systems end at 255, and the names of checkpoints are appended


def check_values(values: Mapping[str, Any]) -> None:
    """Check each flag by itself, except those of ModelConfig, which checks its own. Raises UsageError."""
    of_model = {one.name for one in MODEL_FLAGS}
    check((one for one in all_flags() if one.name not in of_model), values)
    if values["device"] == "cpu" and values["dtype"] == "torch.float16":
        raise UsageError("--dtype torch.float16 needs a GPU; on a CPU choose torch.bfloat16 or torch.float32")
    for name in ("exp_name", "run_prefix"):
        _check_folder_name(name, values[name])


def notes(args: Namespace) -> list[str]:
    """A sentence for each flag that was set although the model does not read it, or against its purpose."""
    config = ModelConfig.from_args(args)
    found = [
        f"note: --{one.name} has no effect on {config.model}"
        for one in MODEL_FLAGS
        if one.name in config.unused_fields and getattr(config, one.name) != one.default
    ]
    latents = latent_cache_note(config)
    return [*found, *([latents] if latents else [])]


def latent_cache_note(config: ModelConfig) -> str | None:
    """A sentence where latent attention caches more than the keys and values that it is to replace."""
    cached, replaced = (ATTENTION_COSTS[kind](config).cached for kind in (config.variant.attention, "mha"))
    latent, shared = config.kv_lora_rank, config.qk_rope_head_dim
    if cached <= replaced:
        return None
    return (
        f"note: the cache keeps {cached} numbers of a token and layer (--kv_lora_rank {latent} + "
        f"--qk_rope_head_dim {shared}), more than the {replaced} of the keys and values that they replace "
        "(2 n_embd); give a smaller --kv_lora_rank"
    )


def _check_folder_name(flag: str, name: str | None) -> None:
    """A name is one folder: with a slash in it, one run would lie inside another."""
    if name is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9._=+,@-]+", name) or set(name) == {"."} or name[0] == "-":
        raise UsageError(f"--{flag} {name!r} must be a folder's name of letters, digits and . _ = + , @ -")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"--{flag} has {len(name)} characters; at most {LONGEST_NAME} are allowed")

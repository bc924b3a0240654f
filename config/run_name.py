"""The name and folder of a run: short, readable, and different for every other experiment."""

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from config.base import all_flags
from files import folder_name
from flags import Flag, Identity
from models.config import ModelConfig


def identity(args: Namespace) -> dict[str, Any]:
    """The flags that make an experiment another one, by name.

    Each flag says when it is one of them (`flags.Identity`). A new flag at its default is none, so that it
    renames no run; nor are flags that the model does not read, though older ones appear as None.
    """
    features = (None, *ModelConfig.from_args(args).variant.features)
    values = {
        one.name: getattr(args, one.name) if one.read_by in features else None
        for one in sorted(all_flags(), key=lambda one: one.name)
        if _is_part(one, getattr(args, one.name), one.read_by in features)
    }
    if values["data_seed"] is None:
        values["data_seed"] = args.seed
    return values


def _is_part(one: Flag, value: Any, read: bool) -> bool:
    match one.identity:
        case Identity.ALWAYS:
            return True
        case Identity.WHEN_READ:
            return read
        case Identity.WHEN_CHANGED:
            return read and value != one.default
        case _:
            return False


def experiment_name(args: Namespace) -> str:
    """--exp_name, or a name made of sizes, learning rate, batch, seed and a hash of `identity`."""
    if args.exp_name is not None:
        return args.exp_name
    config = ModelConfig.from_args(args)
    begin, middle, end = config.layers
    layers = str(middle)
    if config.variant.repeats:
        layers = f"{middle}x{config.n_repeat}"
        if begin or end:
            layers = f"{begin}-{layers}-{end}"
    digest = hashlib.sha256(json.dumps(identity(args), sort_keys=True).encode()).hexdigest()[:8]
    prefix = [] if args.run_prefix is None else [args.run_prefix]
    parts = [
        *prefix, layers, f"c{args.n_embd}", f"t{args.sequence_length}", f"lr{args.lr:g}",
        f"bs{args.batch_size}x{args.acc_steps}", f"seed{args.seed}", digest,
    ]  # fmt: skip
    return "_".join(parts)


def experiment_dir(args: Namespace) -> Path:
    """<results_base_folder>/<dataset>/<model>/<experiment name>."""
    dataset = folder_name(args.dataset)
    return Path(args.results_base_folder) / dataset / args.model / experiment_name(args)

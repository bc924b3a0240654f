"""The folder of a run: short, readable, and another one for every other experiment."""

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from files import folder_name
from models.config import ModelConfig
from models.variants import LATENT, PAUSE, PONDER, ROUTING, STICK_BREAKING

# Flags that are younger than runs of models that do not read them.
YOUNGER = ROUTING + STICK_BREAKING + PONDER + LATENT + PAUSE

# Flags that do not change what is computed, or only how far: the same experiment has the same folder, so that
# the same command resumes it on any machine, and a larger --iterations extends it.
NOT_IDENTITY = {
    "iterations", "device", "data_dir", "data_in_ram", "results_base_folder", "log_freq", "eval_freq",
    "eval_seq_prefix", "eval_seq_length", "eval_sample_size", "eval_length_factor", "save_checkpoint_freq",
    "remove_intermediary_checkpoints_at_end", "use_pretrained", "exp_name", "run_prefix", "wandb",
    "wandb_project", "wandb_entity", "compile", "distributed_backend", "config_format", "dataset",
    "add_additional_space", "rmsnorm_eps", "multiple_of", "min_repeat", "mod_capacity_factor", "lm_cache",
    "mem_cache_size", "cache_topk", "cache_selection_method", "cache_indexing_scheme",
    "keep_last", "keep_every", "checkpoint_staging_dir", "max_steps_this_run", "max_time",
    "exit_code_unfinished", "extend_schedule", "distributed_timeout", "experiment", "scale",
    "track_cache_attention", "allow_cache_during_training", "routing", "routing_threshold", "ponder_eval",
    "attention", "loss", "activation_checkpointing",
}  # fmt: skip


def identity(args: Namespace) -> dict[str, Any]:
    """The flags that make an experiment what it is: None for a flag of repeats that the model does not read.

    The younger ones stand here only where they are read, so that older runs keep their names.
    """
    unread = ModelConfig.from_args(args).unused_fields
    values = {
        name: None if name in unread else value
        for name, value in sorted(vars(args).items())
        if name not in NOT_IDENTITY and not (name in YOUNGER and name in unread)
    }
    if values["data_seed"] is None:
        values["data_seed"] = args.seed
    return values


def experiment_name(args: Namespace) -> str:
    """--exp_name, or a name made of the flags: sizes, rate, batch, seed, and a hash of `identity`."""
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

"""Values and combinations that are refused, each with a sentence."""

import re
from argparse import Namespace

from errors import UsageError
from models.config import ModelConfig

AT_LEAST_ONE = (
    "batch_size", "acc_steps", "iterations", "eval_freq", "log_freq", "save_checkpoint_freq",
    "eval_seq_length", "eval_sample_size", "keep_last", "keep_every", "max_steps_this_run",
)  # fmt: skip
AT_LEAST_ZERO = (
    "seed", "data_seed", "weight_decay", "grad_clip", "depth_predictor_loss_coef", "act_penalty",
    "ponder_kl_div_loss_weight",
)  # fmt: skip
LONGEST_NAME = 150  # characters; file systems end at 255, and checkpoints' names are put behind


def check_values(args: Namespace) -> None:
    """Each flag by itself. Raises UsageError for the first that is wrong."""
    for name in AT_LEAST_ONE:
        _require(args, name, lambda value: value is None or value >= 1, "must be at least 1")
    for name in AT_LEAST_ZERO:
        _require(args, name, lambda value: value is None or value >= 0, "must not be negative")
    for name in ("lr", "final_div_factor", "max_time", "distributed_timeout"):
        _require(args, name, lambda value: value is None or value > 0, "must be above 0")
    for name in ("beta1", "beta2"):
        _require(args, name, lambda value: 0 <= value < 1, "must be at least 0 and below 1")
    _require(args, "warmup_percent", lambda value: 0 <= value <= 1, "is a fraction, from 0 to 1")
    for name in ("exp_name", "run_prefix"):
        _check_name(name, getattr(args, name))
    if args.device == "cpu" and args.dtype == "torch.float16":
        raise UsageError("--dtype torch.float16 needs a GPU; on a CPU choose torch.bfloat16 or torch.float32")
    if not 0 <= args.exit_code_unfinished <= 255:
        raise UsageError(f"--exit_code_unfinished {args.exit_code_unfinished} must be from 0 to 255")


def check_architecture(args: Namespace) -> None:
    """What has to fit together in the model. Raises UsageError."""
    ModelConfig.from_args(args)


def notes(args: Namespace) -> list[str]:
    """A sentence for each flag that was set although the model does not read it."""
    config = ModelConfig.from_args(args)
    return [
        f"note: --{name} has no effect on {config.model}"
        for name in config.unused_fields
        if getattr(config, name) != ModelConfig.__dataclass_fields__[name].default
    ]


def _require(args: Namespace, name: str, holds, rule: str) -> None:
    value = getattr(args, name)
    if not holds(value):
        raise UsageError(f"--{name} {value} {rule}")


def _check_name(flag: str, name: str | None) -> None:
    """A name is one folder: with a slash in it, one run would lie inside another."""
    if name is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9._=+,@-]+", name) or set(name) == {"."} or name[0] == "-":
        raise UsageError(f"--{flag} {name!r} must be a folder's name of letters, digits and . _ = + , @ -")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"--{flag} has {len(name)} characters; at most {LONGEST_NAME} are allowed")

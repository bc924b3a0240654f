"""All flags of main.py: those of the dataclasses that read them, and below those of a run as a whole.

A flag is a dataclass field (`flags.flag`): of `models.config.ModelConfig` where it shapes the network, of
`config.training.TrainConfig` where it shapes the optimisation, else of a class here.
"""

import os
from dataclasses import dataclass, replace
from functools import partial

from config.training import TrainConfig
from files import FILES_PREFIX
from flags import (
    POSITIVE,
    Bound,
    Flag,
    Identity,
    at_least,
    choice,
    choice_or,
    device,
    dtype,
    flag,
    flags_of,
    unused_flag,
)  # fmt: skip
from models.config import ModelConfig
from models.variants import VARIANTS

# fmt: off
DATASETS = (
    "pydoc", "slimpajama", "wikitext", "pg19", "shakespeare-char", "arxivmath", "owt2", "openwebtext2",
    "arxiv2000", "arxiv+wiki", "fineweb", "fineweb_100bt", "fineweb_edu", "counting", "phop",
)
# fmt: on
TOKENIZERS = ("bytes", "gpt2", "cl100k_base")
BACKENDS = ("nccl", "gloo", "fsdp")
EXTENSIONS = ("rebuild", "keep")
COMPILE = ("auto", "block", "step", "none")
GROUPS = (
    "Training", "Optimizer", "Dataset", "Model architecture", "CoTFormer", "Adaptive depth",
    "Latent attention", "Pause tokens", "Positional encoding and cache", "Evaluation",
    "Logging and checkpoints", "Distributed training",
)  # fmt: skip


def is_pattern(dataset: str) -> bool:
    """Whether a --dataset names files instead of a registered corpus."""
    return dataset.startswith(FILES_PREFIX) and len(dataset) > len(FILES_PREFIX)


def _compile(text: str) -> str:
    """One of COMPILE. Runs of earlier versions, where it was a switch, say True or False."""
    return choice(COMPILE)({"True": "step", "False": "none"}.get(text, text))


_data = partial(flag, group="Dataset", identity=Identity.NEVER)
_before = partial(flag, group="Training", identity=Identity.NEVER, from_run=False)
_computing = partial(flag, group="Model architecture")
_evaluation = partial(flag, group="Evaluation", identity=Identity.NEVER)
_logging = partial(flag, group="Logging and checkpoints", identity=Identity.NEVER)
_counts = partial(_logging, bound=at_least(1))
_distributed = partial(flag, group="Distributed training", identity=Identity.NEVER)
_cache = partial(unused_flag, group="Positional encoding and cache")


@dataclass(frozen=True)
class DataFlags:
    """The corpus and its tokens."""

    dataset: str = _data(
        "pydoc", f"{', '.join(DATASETS)}, or files:<pattern>,... for your own .jsonl, .jsonl.zst, .parquet, "
        ".txt files or .bin shards; pydoc comes with Python and needs no network",
        read=choice_or(DATASETS, is_pattern, "files:<pattern>"),
    )  # fmt: skip
    tokenizer: str | None = _data(
        None, f"{', '.join(TOKENIZERS)}, or the path of a Hugging Face tokenizer.json; None: the corpus' own "
        "(pydoc: bytes)",
        read=choice_or(TOKENIZERS, lambda text: text.endswith(".json"), "a tokenizer.json"),
        identity=Identity.ALWAYS,
    )  # fmt: skip
    data_dir: str | None = _data(None, "folder of the token files; None: data/datasets")
    data_in_ram: bool = _data(False, "read the token files into memory first")
    add_additional_space: bool = unused_flag(False, group="Dataset")


@dataclass(frozen=True)
class ComputeFlags:
    """Device and arithmetic."""

    device: str = flag(
        "auto", "auto (CUDA if there is a GPU, else the CPU), cpu, cuda or cuda:N",
        group="Training", read=device, identity=Identity.NEVER, from_run=False,
    )  # fmt: skip
    dtype: str = _computing(
        "torch.bfloat16", "format of matrix products: torch.bfloat16, torch.float16 (GPUs only) or "
        "torch.float32. A CPU that does not multiply bfloat16 natively uses float32 instead, and says so",
        read=dtype, identity=Identity.ALWAYS,
    )  # fmt: skip
    deterministic: bool = _computing(
        True, "true or false: on a GPU, use only kernels that sum in a fixed order, so that an interrupted "
        "run resumes bit for bit; false: up to rounding, with a faster backward pass. CPUs always do",
        identity=Identity.NEVER, implied=True,
    )  # fmt: skip
    tf32: bool = _computing(
        True, "true or false: on a GPU, multiply float32 numbers in TF32 (10 bits after the point), faster",
        identity=Identity.NEVER, implied=True,
    )  # fmt: skip
    compile: str = _computing(
        "auto", "torch.compile of the training: block: all of a block but attention, in a minute; step: the "
        "whole forward pass, in minutes, but micro-batches of which a pass takes no token or one stay "
        "uncompiled; auto: block on GPUs, where the run is long enough for it to pay; without a value: step",
        read=_compile, choices=COMPILE, implied="step", identity=Identity.NEVER,
    )  # fmt: skip


@dataclass(frozen=True)
class RunFlags:
    """Whether to train at all; evaluations during training, the run's folder and its checkpoints."""

    dry_run: bool = _before(
        False, "only say what the training would take (parameters, compute, memory) and its folder"
    )
    yes: bool = _before(False, "train even where the estimated memory exceeds what is free")

    eval_seq_prefix: str | None = _evaluation(
        "Once upon a time", "each evaluation continues this text; None: no text sample"
    )
    eval_seq_length: int | None = _evaluation(
        None, "eval.py: tokens of a sequence; None: --sequence_length", bound=at_least(1)
    )
    eval_sample_size: int | None = _evaluation(
        None, "eval.py: tokens to evaluate on; None: the whole validation set", bound=at_least(1)
    )
    wandb: bool = _logging(False, "log to Weights & Biases; WANDB_MODE=offline needs no network")
    wandb_project: str = _logging("my-project", "W&B project")
    wandb_entity: str | None = _logging(None, "W&B team; None: your own account")
    results_base_folder: str = _logging("./exps", "folder that holds the folders of runs")
    keep_last: int | None = _counts(None, "keep only this many of the newest ckpt_<step>.pt; None: all")
    keep_every: int | None = _counts(
        None, "with --keep_last: also keep those at multiples of this many steps"
    )
    checkpoint_staging_dir: str | None = _logging(
        os.environ.get("SLURM_TMPDIR") or None,
        "a local folder where checkpoints are written before they are copied to the run's folder; default: "
        "$SLURM_TMPDIR, if it is set",
    )
    max_steps_this_run: int | None = _counts(None, "save and stop after this many steps: for chains of jobs")
    max_time: float | None = _logging(None, "save and stop after this many minutes", bound=POSITIVE)
    exit_code_unfinished: int = _logging(
        0, "exit code of a run that a signal (SIGTERM, SIGHUP, Ctrl-C, ...) or one of the two flags above "
        "stops with steps left; 85 is usual for `run me again`",
        bound=Bound(lambda code: 0 <= code <= 255, "must be from 0 to 255"),
    )  # fmt: skip
    extend_schedule: str = _logging(
        "rebuild", "when a run gets more --iterations: compute its schedule anew (rebuild), or keep it and "
        "hold its final learning rate (keep)",
        choices=EXTENSIONS,
    )  # fmt: skip
    remove_intermediary_checkpoints_at_end: bool = _logging(
        False, "delete the ckpt_<step>.pt when the run has finished"
    )
    use_pretrained: str | None = _logging(
        "auto", "auto: resume from the newest checkpoint of this run, if there is one; a file: resume from "
        "it; None: start afresh",
        from_run=False,
    )  # fmt: skip
    exp_name: str | None = _logging(
        None, "name of the run's folder; None: made from the flags", from_run=False
    )
    run_prefix: str | None = _logging(None, "prefix of the name that is made from the flags", from_run=False)


@dataclass(frozen=True)
class DistributedFlags:
    """Several processes, which torchrun starts."""

    distributed_backend: str | None = _distributed(
        None, "nccl (GPUs) or gloo (CPUs): data parallel (DDP); fsdp: weights sharded across processes; "
        "None: DDP with the backend of the device",
        choices=BACKENDS, from_run=False,
    )  # fmt: skip
    distributed_timeout: float = _distributed(
        10.0, "minutes that processes wait for one another before all exit", bound=POSITIVE
    )
    config_format: str = unused_flag("base", group="Distributed training", choices=("base",), from_run=False)


@dataclass(frozen=True)
class UnusedFlags:
    """Flags of the released code that nothing reads."""

    rmsnorm_eps: float = unused_flag(1e-5, group="Model architecture")
    multiple_of: int = unused_flag(256, group="Model architecture")
    min_repeat: int = unused_flag(1, group="CoTFormer")
    mod_capacity_factor: float = unused_flag(0.6, group="Adaptive depth")
    lm_cache: str = _cache("none", choices=("none",))
    mem_cache_size: int | None = _cache(None)
    cache_topk: int = _cache(1)
    cache_selection_method: str = _cache("per_token_and_head")
    cache_indexing_scheme: str = _cache("by_total")
    track_cache_attention: bool = _cache(False)
    allow_cache_during_training: bool = _cache(False)


CLASSES = (
    TrainConfig, ComputeFlags, DataFlags, ModelConfig, RunFlags, DistributedFlags, UnusedFlags,
)  # fmt: skip


def all_flags() -> list[Flag]:
    """Every flag of main.py, in the order of GROUPS; if few models read one, its help begins with them."""
    found = [replace(one, help=_readers(one) + one.help) for one in flags_of(*CLASSES)]
    return sorted(found, key=lambda one: GROUPS.index(one.group))


def models_that_read(one: Flag) -> list[str] | None:
    """The aliases of the models that read a flag; None: all do."""
    if one.read_by is None:
        return None
    found = [variant for variant in VARIANTS if one.read_by in variant.features]
    return [variant.alias for variant in found if not variant.name.endswith("_for_mac_compute")]


def _readers(one: Flag) -> str:
    names = models_that_read(one)
    return "" if names is None or len(names) > 2 else f"{', '.join(names)}: "

"""The flags of the training loop and the optimiser, as one frozen value (`TrainConfig`)."""

from argparse import Namespace
from dataclasses import dataclass, fields
from functools import partial

from flags import FRACTION, NOT_NEGATIVE, POSITIVE, RATE, Identity, at_least, flag
from models.config import ModelConfig

OPTIMIZERS = ("adamw", "sgd", "adafactor")
SCHEDULERS = ("cos", "linear", "none")

_training = partial(flag, group="Training")
_optimizer = partial(flag, group="Optimizer", identity=Identity.ALWAYS)
_intervals = partial(flag, bound=at_least(1), identity=Identity.NEVER)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the optimisation, and its intervals in optimiser steps."""

    batch_size: int = _training(32, "sequences in a micro-batch", bound=at_least(1), identity=Identity.ALWAYS)
    acc_steps: int = _training(
        4, "gradient accumulation: micro-batches in an optimiser step, which sees batch_size x acc_steps "
        "sequences",
        bound=at_least(1), identity=Identity.ALWAYS,
    )  # fmt: skip
    iterations: int = _training(
        25000, "optimiser steps; the paper: 40k, adaptive models 60k",
        bound=at_least(1), identity=Identity.NEVER,
    )  # fmt: skip
    seed: int = _training(
        2, "seed of the initial weights and of every random draw of training",
        bound=NOT_NEGATIVE, identity=Identity.ALWAYS,
    )  # fmt: skip
    data_seed: int | None = _training(
        None, "seed of the order of the data; None: --seed", bound=NOT_NEGATIVE, identity=Identity.ALWAYS
    )
    opt: str = _optimizer("adamw", "adamw, sgd (momentum 0.9) or adafactor", choices=OPTIMIZERS)
    lr: float = _optimizer(1e-3, "peak learning rate", bound=POSITIVE)
    beta1: float = _optimizer(0.9, "AdamW: decay of the first moment", bound=RATE)
    beta2: float = _optimizer(0.95, "AdamW: decay of the second moment", bound=RATE)
    weight_decay: float = _optimizer(
        0.1, "weight decay of Linear weights; nothing else decays", bound=NOT_NEGATIVE
    )
    grad_clip: float = _optimizer(
        0.0, "maximum L2 norm of the gradient; 0: no clipping, as in the paper", bound=NOT_NEGATIVE
    )
    scheduler: str = _optimizer(
        "cos", "warm-up and decay as half cosines (cos) or straight lines (linear), or a constant rate "
        "(none)",
        choices=SCHEDULERS,
    )  # fmt: skip
    warmup_percent: float = _optimizer(
        0.05, "fraction of the iterations that the learning rate rises, from lr/100; the paper: 0.2",
        bound=FRACTION,
    )  # fmt: skip
    final_div_factor: float = _optimizer(
        0.05, "the final learning rate is (lr/100) / final_div_factor, 0.2 lr at the default, as in the "
        "published runs (a table of theirs says lr x final_div_factor)",
        bound=POSITIVE,
    )  # fmt: skip
    cuda_graphs: bool = _training(
        False, "capture forward and backward of a micro-batch as a CUDA graph and replay it, which saves the "
        "host's time for launches; for one GPU, and models whose shapes are fixed. Not yet tried on a GPU",
        identity=Identity.NEVER,
    )  # fmt: skip
    sequence_length: int = ModelConfig.sequence_length
    eval_freq: int = _intervals(
        200, "steps between evaluations on 24 batches; the final one uses the whole validation set",
        group="Evaluation",
    )  # fmt: skip
    log_freq: int | None = _intervals(
        None, "steps between lines of metrics.jsonl; None: --eval_freq", group="Logging and checkpoints"
    )
    save_checkpoint_freq: int | None = _intervals(
        None, "steps between checkpoints ckpt_<step>.pt; None: only ckpt.pt at the end",
        group="Logging and checkpoints",
    )  # fmt: skip
    scheduled: int | None = None  # iterations of the learning-rate schedule; None: all

    @classmethod
    def from_args(cls, args: Namespace) -> "TrainConfig":
        """Read the fields from the flags; data_seed defaults to seed, log_freq to eval_freq."""
        values = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        for name, fallback in (("data_seed", "seed"), ("log_freq", "eval_freq")):
            values[name] = values[fallback] if values[name] is None else values[name]
        return cls(**values)

    @property
    def schedule_iterations(self) -> int:
        """Steps that the learning-rate schedule spans: all, unless an extended run keeps its old schedule."""
        return self.iterations if self.scheduled is None else self.scheduled

    @property
    def micro_batches(self) -> int:
        """Of the whole run, on all ranks."""
        return self.iterations * self.acc_steps

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.acc_steps * self.sequence_length

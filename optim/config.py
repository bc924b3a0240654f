"""What the training loop needs to know, as one frozen value."""

from argparse import Namespace
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the optimisation and its intervals (in steps); names and meanings are the flags'."""

    iterations: int
    batch_size: int
    acc_steps: int
    sequence_length: int
    seed: int
    data_seed: int
    opt: str
    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    grad_clip: float
    scheduler: str
    warmup_percent: float
    final_div_factor: float
    eval_freq: int
    log_freq: int
    save_checkpoint_freq: int | None
    scheduled: int | None = None  # iterations that the learning rate is laid out for; None: all

    @classmethod
    def from_args(cls, args: Namespace) -> "TrainConfig":
        """Read the fields from the flags; data_seed defaults to seed, log_freq to eval_freq."""
        values = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        for name, fallback in (("data_seed", "seed"), ("log_freq", "eval_freq")):
            values[name] = values[fallback] if values[name] is None else values[name]
        return cls(**values)

    @property
    def schedule_iterations(self) -> int:
        """For how many the learning rate is laid out: all, but where an extended run keeps its own."""
        return self.iterations if self.scheduled is None else self.scheduled

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.acc_steps * self.sequence_length

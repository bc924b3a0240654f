"""Everything that a run needs to go on, in one place; saving and loading it is the checkpoint."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from errors import Failure, UsageError
from optim.config import TrainConfig
from optim.optimizers import make_optimizer
from optim.schedules import make_schedule

FORMAT = "cotformer-lab/1"


@dataclass
class Interval:
    """Sums over the steps since the last logged line. seconds: spent in training steps."""

    steps: int = 0
    loss_sum: float = 0.0
    norms: int = 0
    norm_sum: float = 0.0
    norm_max: float = 0.0
    norm_last: float | None = None
    seconds: float = 0.0

    def add(self, loss: float, norm: float | None, seconds: float) -> None:
        """norm is None for a step that the float16 scaler skipped."""
        self.steps += 1
        self.loss_sum += loss
        self.seconds += seconds
        if norm is not None:
            self.norms += 1
            self.norm_sum += norm
            self.norm_max = max(self.norm_max, norm)
            self.norm_last = norm

    @property
    def norm_mean(self) -> float | None:
        return self.norm_sum / self.norms if self.norms else None


@dataclass
class TrainState:
    """step: updates made so far. seconds: spent in training steps, over all restarts."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    interval: Interval = field(default_factory=Interval)

    @classmethod
    def fresh(cls, model: nn.Module, config: TrainConfig, scaler: torch.amp.GradScaler) -> "TrainState":
        optimizer = make_optimizer(model, config)
        return cls(model, optimizer, make_schedule(optimizer, config), scaler)

    def to_checkpoint(self) -> dict[str, Any]:
        """Tensors and plain data. The schedule and all random draws follow from the step."""
        return {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "interval": asdict(self.interval),
            "model": self.model.state_dict(),
            # Not its param_groups: rates, decay and so on are those of the flags.
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, content: dict[str, Any], config: TrainConfig) -> None:
        """Go on from `content` (of `to_checkpoint`), with the schedule that `config` describes.

        Raises UsageError when it is not a training checkpoint of this project, Failure when it is one of
        another network.
        """
        if content.get("format") != FORMAT:
            raise UsageError(
                "this is no training checkpoint of this project, so training cannot go on from it; "
                "eval.py and generate.py read checkpoints of the released code"
            )
        try:
            self.model.load_state_dict(content["model"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": content["optimizer"], "param_groups": groups})
            self.scaler.load_state_dict(content["scaler"])
            self.interval = Interval(**content["interval"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise Failure(f"the checkpoint does not fit the flags of this run: {reason}") from error
        self.step = content["step"]
        self.seconds = content["seconds"]
        self.schedule = make_schedule(self.optimizer, config, self.step)

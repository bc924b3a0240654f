"""Everything that a run needs to go on, in one place; saving and loading it is the checkpoint."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from config.training import TrainConfig
from errors import Failure, UsageError
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
    lr: float | None = None  # of the last update

    def add(self, loss: float, norm: float | None, seconds: float, lr: float) -> None:
        """norm is None for a step that the float16 scaler skipped."""
        self.steps += 1
        self.lr = lr
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
    """step: updates made so far. schedule_iterations: for how many the learning rate is laid out.

    seconds: spent in training steps, over all restarts.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    step: int = 0
    schedule_iterations: int = 0
    seconds: float = 0.0
    interval: Interval = field(default_factory=Interval)

    @classmethod
    def fresh(cls, model: nn.Module, config: TrainConfig, scaler: torch.amp.GradScaler) -> "TrainState":
        optimizer = make_optimizer(model, config)
        schedule = make_schedule(optimizer, config)
        return cls(model, optimizer, schedule, scaler, schedule_iterations=config.schedule_iterations)

    def to_checkpoint(self) -> dict[str, Any]:
        """Tensors and plain data. The schedule and all random draws follow from the step."""
        return {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "interval": asdict(self.interval),
            "schedule_iterations": self.schedule_iterations,
            "model": self.model.state_dict(),
            "tied": _tied(self.model),
            # Not its param_groups: rates, decay and so on are those of the flags.
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def restore(
        self,
        content: dict[str, Any],
        config: TrainConfig,
        shard_like: Callable[[Tensor, Tensor], Tensor] = lambda full, like: full,
    ) -> None:
        """Go on from `content` (of `to_checkpoint`), with the schedule that `config` describes.

        shard_like: (whole tensor, one of the layout it is to have) -> what this process keeps of it. Raises
        UsageError when it is not a training checkpoint of this project, Failure when it is one of another
        network.
        """
        if content.get("format") != FORMAT:
            raise UsageError(
                "this is no training checkpoint of this project, so training cannot go on from it; "
                "eval.py and generate.py read checkpoints of the released code"
            )
        try:
            own = self.model.state_dict()
            weights = {
                name: shard_like(weight, own[name]) if name in own else weight
                for name, weight in content["model"].items()
            }
            self.model.load_state_dict(weights)
            self._restore_optimizer(content["optimizer"], shard_like)
            self.scaler.load_state_dict(content["scaler"])
            self.interval = Interval(**content["interval"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise Failure(f"the checkpoint does not fit the flags of this run: {reason}") from error
        self.step = content["step"]
        self.seconds = content["seconds"]
        self.schedule = make_schedule(self.optimizer, config, self.step)

    def _restore_optimizer(
        self, slots: dict[int, dict[str, Any]], shard_like: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """slots: by the number of the weight, in the order of the groups; those of its shape are parted."""
        groups = self.optimizer.state_dict()["param_groups"]
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        local = {
            index: {
                name: shard_like(value, weights[index]) if value.shape == weights[index].shape else value
                for name, value in of_weight.items()
            }
            for index, of_weight in slots.items()
        }
        self.optimizer.load_state_dict({"state": local, "param_groups": groups})


def _tied(model: nn.Module) -> dict[str, str]:
    """Further names of a weight -> its first."""
    first: dict[int, str] = {}
    names = [(name, id(weight)) for name, weight in model.named_parameters(remove_duplicate=False)]
    for name, weight in names:
        first.setdefault(weight, name)
    return {name: first[weight] for name, weight in names if first[weight] != name}

"""The state of a training: model, optimiser, schedule and counters; and its form in a checkpoint."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from config.training import TrainConfig
from errors import Failure, UsageError
from optim.optimizers import make_optimizer, make_schedule
from optim.train import Interval

FORMAT = "cotformer-lab/1"


@dataclass
class TrainState:
    """Everything that a checkpoint saves of a training.

    step: updates made. schedule_iterations: the steps that the learning-rate schedule spans. seconds: time
    spent in training steps, over all restarts. interval: sums since the last logged line.
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
        """Nested dicts of tensors and plain data. The schedule and all random draws follow from the step."""
        return {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "interval": asdict(self.interval),
            "schedule_iterations": self.schedule_iterations,
            "model": self.model.state_dict(),
            "tied": _tied(self.model),
            # Without its param_groups: rates and decay come from the flags.
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def restore(
        self,
        content: dict[str, Any],
        config: TrainConfig,
        shard_like: Callable[[Tensor, Tensor], Tensor] = lambda full, like: full,
    ) -> None:
        """Resume from `content` (of `to_checkpoint`), with the schedule that `config` describes.

        Args:
            shard_like: (full tensor, a tensor in the wanted layout) -> this rank's shard.

        Raises UsageError when it is no training checkpoint of this project, Failure when it does not fit the
        model.
        """
        if content.get("format") != FORMAT:
            raise UsageError(
                "this is no training checkpoint of this project, so training cannot resume from it; "
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
        """slots: by index of the weight, in the order of the groups; those of its shape are sharded too."""
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
    """Tied weights: each further name of a weight -> its first name."""
    first: dict[int, str] = {}
    names = [(name, id(weight)) for name, weight in model.named_parameters(remove_duplicate=False)]
    for name, weight in names:
        first.setdefault(weight, name)
    return {name: first[weight] for name, weight in names if first[weight] != name}

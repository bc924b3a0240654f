"""The state of a training: model, optimiser, schedule and counters; and its form in a checkpoint."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from types import NoneType
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
            self._require_own(content)
            if any(content["optimizer"].values()):
                self._restore_optimizer(content["optimizer"], config, shard_like)
            elif content["step"] and not self.scaler.is_enabled():  # float16's scaler skips first steps
                raise ValueError("it has no state of the optimiser")
            own = self.model.state_dict()
            self.model.load_state_dict({
                name: shard_like(weight, own[name]) if name in own else weight
                for name, weight in content["model"].items()
            })  # fmt: skip
            self._restore_scaler(content["scaler"])
            self.interval = Interval(**content["interval"])
            if not all(isinstance(value, (int, float, NoneType)) for value in content["interval"].values()):
                raise TypeError("its sums are no numbers")
            self.step = content["step"]
            self.seconds = content["seconds"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
            raise Failure(f"the checkpoint does not fit the flags of this run: {reason}") from error
        self.schedule = make_schedule(self.optimizer, config, self.step)

    def _require_own(self, content: dict[str, Any]) -> None:
        """Raises an error for weights that are not like the model's, and for tensors in the same memory.

        Kernels read and write as far as a weight's shape says, whatever that of the optimiser's state is.
        """
        weights, tied = content["model"], _tied(self.model)
        for name, own in self.model.state_dict().items():
            if name in weights:
                _require_like(weights[name], own, name)
        for name, first in tied.items():
            if {name, first} <= weights.keys() and not torch.equal(weights[name], weights[first]):
                raise ValueError(f"{name} and {first} are tied, and differ")
        tensors = {name: weight for name, weight in weights.items() if name not in tied}
        for index, slots in content["optimizer"].items():
            tensors |= {f"{slot} of weight {index}": value for slot, value in slots.items()}
        spans = sorted(
            (value.data_ptr(), value.data_ptr() + value.nbytes, name)
            for name, value in tensors.items()
            if isinstance(value, Tensor) and value.numel()
        )
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise ValueError(f"{name} and {other} share their memory")

    def _restore_optimizer(
        self,
        saved: dict[int, dict[str, Any]],
        config: TrainConfig,
        shard_like: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Copy the saved state over that of a step without effect, which has the layout that kernels rely on.

        saved: slots by index of the weight, in the order of the groups.
        """
        _step_without_effect(self.optimizer)
        state = self.optimizer.state_dict()["state"]
        if saved.keys() != state.keys():
            raise ValueError(f"it has the state of {len(saved)} weights, and {len(state)} are trained")
        for index, own in state.items():
            if saved[index].keys() != own.keys():
                held, due = (", ".join(sorted(map(str, slots))) or "nothing" for slots in (saved[index], own))
                raise ValueError(f"its optimiser's state is {held}, and --opt {config.opt} has {due}")
            for slot, value in own.items():
                _require_like(saved[index][slot], value, f"{slot} of weight {index}")
        with torch.no_grad():
            for index, own in state.items():
                for slot, value in own.items():
                    value.copy_(shard_like(saved[index][slot], value))

    def _restore_scaler(self, saved: dict[str, Any]) -> None:
        own = self.scaler.state_dict()
        if not saved:  # by a run in another format than float16, which scales nothing
            return
        for name in own:
            found = saved.get(name)
            if type(found) not in (int, float) or not 0 <= found < math.inf:
                raise ValueError(f"its gradient scaler has the {name} {found}")
        self.scaler.load_state_dict({name: type(value)(saved[name]) for name, value in own.items()})


def _step_without_effect(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimiser's state, as its first step does: with zero gradients, at a learning rate of zero."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _require_like(value: Any, own: Tensor, name: str) -> None:
    """Raises an error unless a full tensor has the dtype, shape and strides of `own`, full or sharded."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, not a tensor")
    found, due = _describe(value), _describe(own)
    if found != due:
        raise ValueError(f"{name} is {found}, and should be {due}")


def _describe(tensor: Tensor) -> str:
    # The stride of a dimension of one element has no meaning.
    strides = [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} with strides {strides}"


def _tied(model: nn.Module) -> dict[str, str]:
    """Tied weights: each further name of a weight -> its first name."""
    first: dict[int, str] = {}
    names = [(name, id(weight)) for name, weight in model.named_parameters(remove_duplicate=False)]
    for name, weight in names:
        first.setdefault(weight, name)
    return {name: first[weight] for name, weight in names if first[weight] != name}

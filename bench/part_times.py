"""Time of each part of a real training step, forward and backward.

Hooks note the time at which a part's input is there and its output is made, in the forward pass, and its
output's gradient and its input's, in the backward pass; autograd goes through the parts in the reverse
order, one after the other, so that the stretch between is the part's own. On CUDA the notes are events in the
stream.

attention: its modules, projections and all, which are not told apart: where keys are those of other rows,
their products go past the Linear layers. mlp: with its activation. head and loss: from the last LayerNorm to
the loss. rest: norms, residuals, embedding, routers, and what the marks themselves cost.
"""

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from bench.builds import TrainingStep
from models.language_model import LanguageModel


class Marks:
    """Seconds by part since the last `take`. Put on a model, it stays there."""

    def __init__(self, model: LanguageModel) -> None:
        self._cuda = model.lm_head.weight.is_cuda
        self._open: dict[Any, Any] = {}
        self._spans: list[tuple[str, Any, Any]] = []
        for name, module in model.named_modules():
            if name.endswith(".attn"):
                self._watch(module, "attention")
            elif name.endswith(".mlp"):
                self._watch(module, "mlp")
        # Not a module, so that its hooks are two identities on its way in and one on its way out.
        model.readout = _MarkedReadout(model.readout, self)

    def _watch(self, module: nn.Module, part: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.begin(part, module, "forward"))
        module.register_forward_hook(lambda *_: self.end(part, module, "forward"))
        module.register_full_backward_pre_hook(lambda *_: self.begin(part, module, "backward"))
        module.register_full_backward_hook(lambda *_: self.end(part, module, "backward"))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, part: str, owner: object, direction: str) -> None:
        self._open[part, id(owner), direction] = self._now()

    def end(self, part: str, owner: object, direction: str) -> None:
        started = self._open.pop((part, id(owner), direction), None)
        if started is not None:
            self._spans.append((part, started, self._now()))

    def take(self) -> dict[str, float]:
        """Seconds by part, without `rest`, of the passes since the last call."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for part, begun, ended in self._spans:
            found[part] += begun.elapsed_time(ended) / 1000 if self._cuda else ended - begun
        self._spans.clear()
        return dict(found)


class _MarkedReadout:
    """A model's readout between marks."""

    def __init__(self, readout: Any, marks: Marks) -> None:
        self._readout, self._marks = readout, marks

    def __call__(self, model: nn.Module, exits: Any, targets: Any, training: bool, *more: Any, **named: Any):
        exits = [*exits]
        # PonderNet has several: in the backward pass the first one's gradient is the last to come.
        exits[0] = _Note.apply(exits[0], lambda: self._marks.end("head and loss", self, "backward"))
        self._marks.begin("head and loss", self, "forward")
        scored = self._readout(model, exits, targets, training, *more, **named)
        self._marks.end("head and loss", self, "forward")
        if scored.loss is None:
            return scored
        noted = _Note.apply(scored.loss, lambda: self._marks.begin("head and loss", self, "backward"))
        return scored._replace(loss=noted)


class _Note(torch.autograd.Function):
    """The identity, whose backward pass calls a function."""

    @staticmethod
    def forward(context: Any, x: Tensor, call: Any) -> Tensor:
        context.call = call
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context.call()
        return gradient, None


def timed_parts(step: TrainingStep, marks: Marks) -> dict[str, float]:
    """Run a step -> seconds of all parts, `optimiser` and `rest` among them."""
    step()
    forward, backward, optimiser = step.seconds[-1]
    found = marks.take()
    found["optimiser"] = optimiser
    found["rest"] = forward + backward + optimiser - sum(found.values())
    return found

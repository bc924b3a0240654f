"""`--cuda_graphs`: forward and backward of a micro-batch as one CUDA graph, captured once and replayed.

A replay launches all kernels of a micro-batch at once, with the same memory: so inputs are copied into fixed
tensors, and gradients accumulate in tensors that are kept from step to step. See "CUDA graphs" in PyTorch's
notes on CUDA semantics: warm-up on a side stream, then whole-network capture. Random draws follow
torch.manual_seed in a replay too: PyTorch registers its generator with the graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from errors import Failure, UsageError
from models.language_model import LanguageModel

if TYPE_CHECKING:
    from optim.state import TrainState

WARM_UP = 3  # micro-batches before the capture: libraries allocate and compilers compile in the first ones


def capture_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture the kernels of `work` without running them; returns what runs them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class GraphedMicroBatch:
    """In place of `optim.train.run_micro_batch`: the same losses and gradients, from a graph."""

    def __init__(
        self,
        run: Callable[..., Tensor],
        model: LanguageModel,
        device: torch.device,
        processes: int = 1,
        capture: Callable[[Callable[[], None]], Callable[[], None]] = capture_graph,
    ) -> None:
        """
        Args:
            run: `optim.train.run_micro_batch`.
            capture: makes of a function that is to be repeated one that repeats it.

        Raises UsageError where shapes are not fixed, or a micro-batch is not the GPU's alone.
        """
        config = model.config
        for reason, holds in (
            (f"needs a GPU, and this runs on {device}", capture is capture_graph and device.type != "cuda"),
            (f"needs fixed shapes, and {config.model} stops tokens early", config.variant.stops_early),
            ("is for one process: gradients are reduced outside of a graph", processes > 1),
            (
                "does not go with --activation_checkpointing, which reads the random state",
                config.activation_checkpointing != "none",
            ),
        ):
            if holds:
                raise UsageError(f"--cuda_graphs {reason}; leave it out")
        self._run, self._capture, self._parameters = run, capture, list(model.parameters())
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._left = WARM_UP
        self._gradients: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._loss: Tensor | None = None

    def __call__(
        self,
        state: "TrainState",
        forward: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        extra: float | Tensor,
        parts: int,
        autocast: AbstractContextManager,
        **capacities: Any,
    ) -> Tensor:
        """As `run_micro_batch`; the shapes of all micro-batches are those of the first."""
        if self._left:
            self._left -= 1
            with self._beside():
                return self._run(state, forward, inputs, targets, extra, parts, autocast, **capacities)
        self._keep_gradients()
        if self._replay is None:
            weight = torch.zeros((), device=inputs.device)
            self._inputs = [torch.empty_like(inputs), torch.empty_like(targets), weight]

            def work() -> None:
                self._loss = self._run(state, forward, *self._inputs, parts, autocast, **capacities)

            try:
                self._replay = self._capture(work)
            except RuntimeError as error:
                reason = (str(error).splitlines() or [""])[0]
                raise Failure(
                    f"--cuda_graphs: a micro-batch cannot be captured ({reason}); leave it out"
                ) from error
        for kept, new in zip(self._inputs, (inputs, targets), strict=False):
            kept.copy_(new, non_blocking=True)
        self._inputs[2].fill_(extra)
        self._replay()
        assert self._loss is not None
        return self._loss.clone()  # the next replay writes there

    def _keep_gradients(self) -> None:
        """Gradients lie where the graph adds to them; those that a step has discarded begin at zero."""
        if not self._gradients:
            for parameter in self._parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                self._gradients.append(gradient)
                parameter.grad = gradient
        elif any(parameter.grad is None for parameter in self._parameters):
            torch._foreach_zero_(self._gradients)
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On a side stream, as captures are: what is allocated there can be used again by the graph."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

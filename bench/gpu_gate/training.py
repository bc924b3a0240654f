"""Short trainings on random tokens, made of the parts of which `optim.run` makes a run."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from bench.plan import Plan, Size, model_flags
from config import parse_args
from config.training import TrainConfig
from data.batches import MicroBatch, TokenWindows
from distributed import choose_compile, choose_device, choose_precision
from distributed.parallel import RankSlice, SingleProcess
from models import make_model_from_args
from optim.compiling import compile_training
from optim.state import TrainState
from optim.train import load_micro_batches, run_micro_batch, seed_torch, training_step

# Heads as wide as the paper's, in seconds on a CPU.
SMALL = Size(
    {"n_layer": 4, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 3, "n_embd": 128, "n_head": 2,
     "vocab_size": 512, "sequence_length": 64},
    4, "of the gate's comparisons",
)  # fmt: skip


def size_of(plan: Plan) -> Size:
    """The size of comparisons; a smaller one where the gate is only rehearsed."""
    return plan.pick(SMALL, SMALL, SMALL.but(n_layer=3, n_repeat=2, n_embd=32, sequence_length=16))


class Training:
    """A model, its optimiser and its batches.

    Args:
        tf32: as in a run; False: full float32, for comparisons with a CPU.
        parallel: a way to train; None: one process.
        flags: of main.py, besides those of the model's size; True stands for a switch, a list for several
            values. Nothing is compiled unless they say so.
    """

    def __init__(
        self, model: str, size: Size, device: str, dtype: str = "bfloat16", *, tf32: bool = True,
        parallel: SingleProcess | None = None, **flags: Any,
    ) -> None:  # fmt: skip
        known = {
            **model_flags(model, size), "device": device, "dtype": dtype, "batch_size": size.batch,
            "acc_steps": 1, "iterations": 10_000, "compile": "none", "tf32": str(tf32).lower(), **flags,
        }  # fmt: skip
        self.args = parse_args(_words(known))
        self.config = TrainConfig.from_args(self.args)
        self.device = choose_device(self.args.device, self.args.deterministic, self.args.tf32)
        self.precision = choose_precision(self.args.dtype, self.device)
        self.parallel = SingleProcess() if parallel is None else parallel
        seed_torch(self.args.seed, "initialisation")
        self.model = self.parallel.wrap(make_model_from_args(self.args).to(self.device))
        self.state = TrainState.fresh(self.model, self.config, self.precision.gradient_scaler())
        mode, _ = choose_compile(self.args.compile, self.device, self.config.micro_batches)
        if mode != "none":
            compile_training(self.model, mode, self.precision)
        self.forward = self.parallel.training_forward(self.model)
        self.forward.train()
        self.seconds: list[float] = []  # of each step
        self._graphed: list[Any] = []
        if self.graphed:
            from optim.graphed import GraphedMicroBatch

            self._graphed = [GraphedMicroBatch(run_micro_batch, self.model, self.device)]
        self._batches: Iterator[MicroBatch] | None = None
        self._slice = RankSlice.of(self.config.batch_size, self.config.acc_steps, 0, 1)

    @property
    def graphed(self) -> bool:
        """Whether a step replays CUDA graphs."""
        return self.args.cuda_graphs

    def steps(self, count: int) -> list[tuple[float, float | None]]:
        """Losses and gradient norms of the next steps."""
        return [self._step() for _ in range(count)]

    def losses(self, count: int) -> list[float]:
        return [loss for loss, _ in self.steps(count)]

    def micro_batch(self) -> None:
        """Forward and backward of a micro-batch as a step has them, without its one wait for the loss."""
        batch = next(self._micro_batches())
        seed_torch(self.args.seed, "forward", self.state.step)
        inputs = batch.inputs.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        with self.parallel.accumulate(self.forward, last=True):
            autocast = self.precision.autocast()
            run_micro_batch(self.state, self.forward, inputs, targets, 0.0, 1, autocast)

    def checkpoint(self) -> dict[str, Any]:
        """As `optim.run` writes it, without what concerns the corpus."""
        return self.state.to_checkpoint() | {
            "args": vars(self.args), "tokenizer": {}, "data": "", "versions": {},
        }  # fmt: skip

    def restore(self, content: dict[str, Any]) -> None:
        self.state.restore(content, self.config, self.parallel.shard_like)
        self._batches = None

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights as full tensors on the CPU."""
        return {
            name: self.parallel.full_tensor(weight.detach()).cpu().clone()
            for name, weight in self.model.named_parameters()
        }

    def _step(self) -> tuple[float, float | None]:
        batches = self._micro_batches()
        started = time.perf_counter()
        done = training_step(
            self.state, self.forward, batches, self._slice, self.config, self.precision.autocast(),
            self.parallel, lambda step: False, *self._graphed,
        )  # fmt: skip
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - started)
        assert done is not None  # nobody stops it
        return done

    def _micro_batches(self) -> Iterator[MicroBatch]:
        if self._batches is None:
            generator = np.random.default_rng(1)
            length = self.config.sequence_length
            tokens = generator.integers(0, self.args.vocab_size, size=256 * length + 1, dtype=np.int64)
            windows = TokenWindows([tokens], length)
            self._batches = load_micro_batches(
                windows, self.config, self._slice, self.state.step, self.device
            )
        return self._batches


def same_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(weight, other[name]) for name, weight in one.items()
    )


def _words(flags: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in flags.items():
        values = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [f"--{name}", *map(str, values)]
    return words

"""The works that are timed: a training step, a batch of evaluation, filling the KV cache, decoding.

This file is also executed on its own, from two checkouts of this repository at different commits
(`python -m bench.compare --against`). So it imports nothing of the suite, and of the models only what all
commits have: make_model_from_args, generate, model(idx, targets)["loss"] and the device's settings.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # the checkout that is measured, in place of this file's folder

import torch
from torch.utils.benchmark import Timer, timer

from distributed import choose_device
from models import make_model_from_args
from models.generation import generate

PROMPT = 16  # tokens before the decoded ones


class Work:
    """A model and a batch of random tokens; each call works once. The base of the works below.

    Args:
        flags: of the model, with its sequence_length T.
        batch: sequences.
        dtype: float32 or bfloat16, the latter also where the processor only emulates it.
        factors: capacities of routed models; None: drawn in training, else full depth.
    """

    def __init__(
        self, flags: Mapping[str, Any], batch: int, device: str, dtype: str,
        factors: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.device, self.dtype, self.factors = choose_device(device), getattr(torch, dtype), factors
        torch.manual_seed(0)  # the same weights each time
        self.model = make_model_from_args(SimpleNamespace(**flags)).to(self.device).eval()
        shape = (batch, flags["sequence_length"] + 1)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, flags["vocab_size"], shape, generator=generator).to(self.device)
        self.inputs, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.loss: torch.Tensor | None = None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def __call__(self) -> object:
        raise NotImplementedError


class Train(Work):
    """Forward, backward and AdamW, on the same batch each time.

    A step's random capacities depend only on its number, so two models that take turns draw the same.
    seconds: of forward, backward and optimiser of each step, if `phases` is set; then the step waits for the
    device after each.
    """

    phases = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        weights = self.model.train().parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.seconds: list[tuple[float, float, float]] = []

    def __call__(self) -> None:
        now: Callable[[], float] = timer if self.phases else float
        torch.manual_seed(len(self.seconds))
        start = now()
        with self.autocast():
            loss = self.model(self.inputs, self.targets, length_factors=self.factors)["loss"]
        forward = now()
        loss.backward()
        backward = now()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append((forward - start, backward - forward, now() - backward))
        self.loss = loss.detach()


class Evaluate(Work):
    """Loss and predictions of a batch."""

    @torch.no_grad()
    def __call__(self) -> None:
        with self.autocast():
            factors = {"length_factors": self.factors}
            self.loss = self.model(self.inputs, self.targets, get_predictions=True, **factors)["loss"]


class Prefill(Work):
    """One sequence into an empty KV cache, and the prediction of the next token."""

    @torch.no_grad()
    def __call__(self) -> None:
        with self.autocast():
            self.model(self.inputs[:1], get_logits=True, cache=self.model.new_cache(1))


class Decode(Work):
    """Greedy decoding after a prompt of PROMPT tokens, up to sequence_length, at batch 1.

    cached: with a KV cache; else each token computes its context again.
    """

    cached = True

    def __call__(self) -> None:
        tokens, prompt = self.inputs.shape[1] - PROMPT, self.inputs[:1, :PROMPT]
        with self.autocast():
            for _ in generate(self.model, prompt, tokens, temperature=0, cached=self.cached):
                pass


class DecodeByThresholds(Work):
    """Reads given tokens one by one with a KV cache; each router sends a fraction `factors[0]` of them on.

    Given, for tokens that random weights choose are all alike. Returns the passes of each token, (T, 1).
    """

    @torch.no_grad()
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.thresholds = [0.0] * len(self.factors)  # full depth
        if self.factors[0] < 1:
            with self.autocast():
                output = self.model(self.inputs, get_routing=True, thresholds=self.thresholds)
            scores = output["router_scores"][0].float()  # (R - 1, T)
            self.thresholds = scores.quantile(1 - self.factors[0], dim=1).tolist()

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        cache, passes = self.model.new_cache(1), []
        settings = {"get_logits": True, "get_routing": True, "cache": cache, "thresholds": self.thresholds}
        with self.autocast():
            for token in self.inputs[:1].split(1, dim=1):
                passes.append(self.model(token, **settings)["passes"])
        return torch.cat(passes)


WORKS: Mapping[str, type[Work]] = {"train": Train, "eval": Evaluate, "prefill": Prefill, "decode": Decode}


def in_turn(works: Sequence[Callable[[], object]], repeats: int, warm_up: int = 1) -> list[list[float]]:
    """Seconds of each work in each round, after `warm_up` rounds that do not count.

    Works that are compared take turns, so that a slow minute of the machine affects all of them. The clock is
    torch.utils.benchmark's, which waits for the accelerator. Its Timer cannot take turns: `timeit` calls a
    work twice before each measurement, and `blocked_autorange` chooses the number of calls, on which a
    step's capacities depend. It measures works that stand alone: `seconds_of`.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for round_ in range(warm_up + repeats):
        for work, times in zip(works, seconds, strict=True):
            started = timer()
            work()
            taken = timer() - started
            if round_ >= warm_up:
                times.append(taken)
    return seconds


def seconds_of(work: Callable[[], object], at_least_s: float) -> float:
    """The median time of a work that stands alone, called for at least so many seconds after a warm-up."""
    timing = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timing.blocked_autorange(min_run_time=at_least_s).median


def serve() -> None:
    """Answer each line of stdin, a JSON object, by one on stdout.

    {"kind", "flags", "batch", "device", "dtype"} makes a work, {"calls": n} calls it n times. The answer has
    the seconds a call, and the loss of the last one or null.
    """
    work: Callable[[], object] = float
    for line in sys.stdin:
        asked = json.loads(line)
        calls = asked.pop("calls", 1)
        if asked:
            work = float  # gives the memory of the one before back
            work = WORKS[asked.pop("kind")](**asked)
        started = timer()
        for _ in range(calls):
            work()
        seconds = (timer() - started) / calls
        loss = getattr(work, "loss", None)
        answer = {"seconds": seconds, "loss": None if loss is None else float(loss)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()

"""The parts of the suite, by the names that --only takes: each makes the cases of a plan. No torch here."""

import importlib
from collections.abc import Callable, Sequence

from bench.plan import Case, Plan
from errors import UsageError, unknown

# name -> module and function, and what it measures.
PARTS = {
    "floor": ("floor:cases", "time over what arithmetic and memory traffic allow, by part of a step"),
    "train": ("steps:training", "a training step: forward, backward, optimiser"),
    "eval": ("steps:evaluation", "a batch of evaluation"),
    "capacities": ("capacities:cases", "time of adaptive models over capacities, against their MACs"),
    "precision": ("precision:cases", "float32 against bfloat16"),
    "prefill": ("generation:prefill", "a prompt into the key/value cache"),
    "decode": ("generation:decode", "tokens one by one, with the cache and without"),
    "budgets": ("budgets:cases", "decoding under budgets: time saved against MACs saved"),
    "loader": ("loader:cases", "batches of a token file, against a DataLoader"),
    "tokeniser": ("tokeniser:cases", "preparing a corpus, against tiktoken alone, and its memory"),
    "checkpoint": ("checkpoint:cases", "what training waits for at a checkpoint"),
    "startup": ("startup:cases", "the root scripts until they answer"),
    "scaling": ("scaling:cases", "step time and memory over length, repeats, batch, recomputation"),
    "ddp": ("ddp:cases", "tokens per second of main.py in one process and two"),
    "baseline": ("released:cases", "the protocol of the released code's measurements"),
    "paper": ("paper:cases", "the paper's size on a GPU: utilisation, largest micro-batch, 40k steps"),
}


def maker(name: str) -> Callable[[Plan], Sequence[Case]]:
    """What makes the cases of a part. Raises UsageError for a name that is none."""
    if name not in PARTS:
        raise UsageError(unknown(f"--only {name}: there is no such part", name, PARTS))
    module, _, function = PARTS[name][0].partition(":")
    return getattr(importlib.import_module(f"bench.parts.{module}"), function)

"""The least time that a training step can take: `python -m bench.floor [flags of python -m bench]`.

Arithmetic over the machine's matrix rate, for the optimiser memory traffic over its bandwidth. Both are
measured in turn with the step, the rate as that of whichever product is fastest here (of the step's own
shapes and a large square, `bench.machine_rates`), so that time over floor is a ratio of one round. A
multiply-accumulate is two operations, and the backward pass is twice the forward pass (gradients of inputs
and of weights). Forward counts are `models.macs`, convention `true`: only visible keys count, the head at
every position. Nothing is counted for norms, activations, softmax, rotation, embedding, the loss on top of
the head's product, or for what is recomputed; so the floor cannot be reached, only approached.

Times by part are those of the real model in a real step (`bench.part_times`). The whole step is timed without
the marks that this needs, in turn with one that has them, and is what the whole floor is compared with.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.config import ModelConfig
from models.macs import count_macs

BACKWARD = 2  # times the forward pass
ADAMW_TRAFFIC = 7 * 4  # bytes a weight: reads weight, gradient, two moments, writes all but the gradient

# Parts of a step, and the parts of the MAC count that each holds.
PARTS = {
    "attention": ("projections", "attention"),
    "mlp": ("mlp",),
    "head and loss": ("head",),
    "rest": ("router",),
}


def part_flops(
    config: ModelConfig, length: int, batch: int, factors: Sequence[float] | None = None
) -> dict[str, int]:
    """Operations of forward and backward by part; factors: capacities of models that stop early."""
    macs = count_macs(config, length, factors, "true").parts
    whole = 2 * (1 + BACKWARD) * batch
    return {part: whole * sum(macs[name] for name in names) for part, names in PARTS.items()}


def step_flops(config: ModelConfig, length: int, batch: int, factors: Sequence[float] | None = None) -> int:
    """The same of a whole step, optimiser not counted."""
    return sum(part_flops(config, length, batch, factors).values())


def floors(
    config: ModelConfig, length: int, batch: int, parameters: int, flops_per_s: float, bytes_per_s: float
) -> dict[str, float]:
    """Seconds by part, the optimiser's and the whole's among them, at full capacity."""
    found = {part: count / flops_per_s for part, count in part_flops(config, length, batch).items()}
    found["optimiser"] = parameters * ADAMW_TRAFFIC / bytes_per_s
    found["whole step"] = sum(found.values())
    return found


if __name__ == "__main__":
    from bench.__main__ import main
    from errors import run_script

    run_script(lambda: main(["--only", "floor", *sys.argv[1:]]))

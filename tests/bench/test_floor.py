"""The arithmetic of a step: against torch's own count of what it dispatches, and what scales with what."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.builds import PLAIN, TrainingStep, build, precision_of, random_ids
from bench.floor import PARTS, floors, part_flops, step_flops
from bench.part_times import Marks, timed_parts
from bench.plan import MODELS, SIZES, model_config
from models.macs import count_macs

TINY = SIZES["tiny"]
LENGTH = TINY.flags["sequence_length"]


@pytest.mark.parametrize("model", MODELS)
def test_the_products_are_those_that_torch_dispatches(model):
    """Forward and backward, of all Linear layers; attention's kernels are counted in another place."""
    precision = precision_of("cpu", "float32")
    network = build(model, TINY, precision, **PLAIN)
    ids = random_ids(TINY, precision)
    factors = [1.0] * (TINY.flags["n_repeat"] - 1)
    with FlopCounterMode(display=False, depth=None) as counter:
        network(ids[:, :-1], ids[:, 1:], length_factors=factors)["loss"].backward()
    counts = counter.get_flop_counts()["Global"]
    dispatched = sum(n for op, n in counts.items() if str(op).split(".")[-1] in ("mm", "addmm"))
    ours = part_flops(network.config, LENGTH, TINY.batch)
    attended = 2 * 3 * TINY.batch * count_macs(network.config, LENGTH, None, "true").parts["attention"]
    halting = 4 * TINY.batch * LENGTH if model == "pondernet" else 0  # the expectation over its exits
    assert dispatched == sum(ours.values()) - attended + halting > 0


@pytest.mark.parametrize("model", MODELS)
def test_the_parts_are_the_macs(model):
    """Two operations a multiply-accumulate, forward once and backward twice, for each sequence."""
    config = model_config(model, SIZES["baseline"].flags)
    assert step_flops(config, 256, 4) == 4 * 6 * count_macs(config, 256, None, "true")
    assert all(count >= 0 for count in part_flops(config, 256, 4).values())


def test_capacities_lower_the_floor():
    config = model_config("adm", SIZES["baseline"].flags)
    full, half = (step_flops(config, 256, 4, [f, f]) for f in (1.0, 0.5))
    assert full == step_flops(config, 256, 4) and 0.6 < half / full < 1


def test_seconds():
    config = model_config("standard", TINY.flags)
    found = floors(config, LENGTH, 2, parameters=1000, flops_per_s=1e6, bytes_per_s=1e3)
    assert found["optimiser"] == 28.0
    assert found["whole step"] == pytest.approx(28.0 + step_flops(config, LENGTH, 2) / 1e6)
    assert set(found) == {*PARTS, "optimiser", "whole step"}


@pytest.mark.parametrize("model", MODELS)
def test_marks_see_every_part_and_change_nothing(model):
    precision = precision_of("cpu", "float32")
    plain, marked = (
        TrainingStep(build(model, TINY, precision), TINY, precision, phases=phases)
        for phases in (False, True)
    )
    marks = Marks(marked.model)
    seconds = timed_parts(marked, marks)
    plain()
    assert not plain.seconds  # it waits for the device nowhere
    assert set(seconds) == {*PARTS, "optimiser"}
    assert all(taken > 0 for taken in seconds.values())
    assert sum(seconds.values()) == pytest.approx(sum(marked.seconds[-1]))
    assert torch.equal(plain.last_loss, marked.last_loss)
    for one, other in zip(plain.model.parameters(), marked.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not marks.take().get("mlp")  # nothing is left for the next step

"""The works that are timed, the floor of a training step, and what their parts report."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiktoken
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import floor, steps, suite
from bench.floor import largest, step_flops
from bench.pipeline import time_tokeniser
from bench.plan import MODELS, SIZES, Plan, model_config, model_flags
from bench.processes import DoesNotFit, Measured
from bench.works import DecodeByThresholds, Train, in_turn, seconds_of
from models.macs import count_macs

TINY = SIZES["tiny"]
PLAN = Plan(("adm",), ("tiny",), ("float32",), "cpu", 1, 1, "tiny", "float32")


def make(model, work=Train, **flags):
    return work({**model_flags(model, TINY), **flags}, TINY.batch, "cpu", "float32", TINY.full_depth)


def test_works_take_turns_and_warm_up_does_not_count():
    called = []
    seconds = in_turn([lambda: called.append("a"), lambda: called.append("b")], repeats=3, warm_up=2)
    assert called == ["a", "b"] * 5
    assert [len(times) for times in seconds] == [3, 3]


def test_the_timer_counts_calls():
    called = []
    assert 0 < seconds_of(lambda: called.append(1), 0.001) < 0.001
    assert len(called) > 10


def test_phases_change_no_step_and_two_models_draw_the_same_capacities():
    plain, timed = (Train(model_flags("adm", TINY), TINY.batch, "cpu", "float32") for _ in range(2))
    timed.phases = True
    for _ in range(3):
        plain()
        timed()
        assert torch.equal(plain.loss, timed.loss)
    assert all(min(phases) > 0 for phases in timed.seconds) and set(plain.seconds) == {(0.0, 0.0, 0.0)}


def test_thresholds_send_fewer_tokens_on():
    flags = model_flags("adm", TINY.but(n_repeat=3))
    passes = [
        DecodeByThresholds(flags, 1, "cpu", "float32", [factor] * 2)().float().mean()
        for factor in (1.0, 0.5, 0.0)
    ]
    assert passes[0] == 3 and passes[0] > passes[1] > passes[2] >= 1


@pytest.mark.parametrize("model", MODELS)
def test_the_floor_counts_the_products_that_torch_dispatches(model):
    """Forward and backward, of all Linear layers; attention's kernels are counted elsewhere."""
    step = make(model, loss="plain", attention="plain")
    with FlopCounterMode(display=False, depth=None) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    dispatched = sum(n for op, n in counts.items() if str(op).split(".")[-1] in ("mm", "addmm"))
    macs = count_macs(model_config(model, TINY), TINY.length, TINY.full_depth, "true")
    attention = 6 * TINY.batch * macs.parts["attention"]
    halting = 4 * TINY.batch * TINY.length if model == "pondernet" else 0  # the expectation over its exits
    assert dispatched == step_flops(model, TINY, TINY.full_depth) - attention + halting > 0


def test_capacities_lower_the_floor():
    full, half = (step_flops("adm", SIZES["baseline"], [f, f]) for f in (1.0, 0.5))
    assert full == step_flops("adm", SIZES["baseline"]) and 0.6 < half / full < 1


def test_the_largest_batch_is_a_power_of_two_that_fits():
    tried = []

    def measure(batch):
        tried.append(batch)
        if batch > 5:
            raise DoesNotFit("too large")
        return f"with {batch}"

    assert largest(measure, 128) == (4, "with 4") and tried == [1, 2, 4, 8]
    assert largest(measure, 2) == (2, "with 2")
    assert largest(lambda batch: measure(8), 8) == (0, None)


@pytest.fixture
def here(monkeypatch):
    """Measurements in this process: processes of their own are the subject of test_processes.py."""
    floor.rates_of.cache_clear()
    monkeypatch.setattr(
        Plan, "isolated", lambda plan, function, *arguments: Measured(function(*arguments), 1.0)
    )


@pytest.mark.process
def test_every_part_measures_each_case_once(here):
    """Except the tokeniser, which needs GPT-2's vocabulary; without it, its result says so."""
    plan = replace(PLAN, models=("adm", "cotformer"), dtypes=("float32", "bfloat16"))
    found = {
        part: [one for case in suite.cases_of(part, plan) for one in case.measure()] for part in suite.PARTS
    }
    for part, results in found.items():
        assert results and {one["part"] for one in results} == {part}
        assert len({one["name"] for one in results}) == len(results)
        for one in results:
            assert part == "tokeniser" or one["value"]["median"] > 0, one
            assert part == "tokeniser" or "tiny" in one["name"] or part == "checkpoint"
            assert one["memory_mib"] == 1.0 or part in ("floor", "capacities", "tokeniser")
            assert one["ratio"] or part not in ("train", "eval", "prefill", "decode")
    steps_over_floor = [one["details"] for one in found["floor"] if one["name"].endswith("whole step")]
    assert all(0 < d["over_low"] <= d["over_floor"] <= d["over_high"] for d in steps_over_floor)
    assert found["train"][1]["details"]["plain_float32_over_ours"] > 0
    first = [one for one in found["capacities"] if one["name"].endswith("factor 1")]
    assert len(first) == 6 and all(one["details"]["deviation"] == 0 for one in first)


@pytest.mark.process
def test_preparing_a_corpus_is_timed_against_the_encoder_alone(monkeypatch):
    """With bytes: GPT-2's vocabulary may not be here."""
    encoder = SimpleNamespace(encode_ordinary_batch=lambda texts, num_threads: [*map(str.encode, texts)])
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoder)
    monkeypatch.setattr("data.pydoc.documents", lambda: ["Some text. " * 100, "More text. " * 70])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None)
    ((ours,), (theirs,)), megabytes = time_tokeniser(1, 0.2, 1, "bytes")
    assert ours > theirs > 0 and 0.2 <= megabytes < 0.21


def test_a_point_that_does_not_fit_ends_its_curve(monkeypatch):
    def isolated(plan, function, flags, batch, *arguments):
        if batch > 1:
            raise DoesNotFit("too large")
        return Measured([1.0], 5.0)

    monkeypatch.setattr(Plan, "isolated", isolated)
    fits, does_not = steps.measure_scaling("but", "batch", (1, 2, 4), "none", PLAN)
    assert fits["value"]["median"] == 1.0 and does_not["details"]["why"] == "too large"


def test_the_paper_s_size_needs_a_gpu():
    assert not floor.paper(replace(PLAN, effort="full")) and floor.paper(replace(PLAN, device="cuda"))

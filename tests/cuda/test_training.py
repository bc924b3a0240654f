"""Three optimiser steps of every model on the imitated device, against the same steps on the CPU."""

import pytest

from bench.plan import MODELS

UPDATE = "tolist at optim/train.py"  # loss and gradient norm, in one transfer
# Stick breaking drops halted tokens from a pass, so the host must know how many there are: once before each
# pass but the first, in two micro-batches of three passes.
WAITS_IN_FORWARD = {"stick_breaking": 2 * 2}
HALVES = {"bfloat16": 0.02, "float16": 0.005}  # relative, of losses near 4.2 and norms near 1


@pytest.mark.parametrize("model", MODELS)
def test_steps_are_those_of_the_cpu(on_cuda, model):
    on_gpu, on_cpu = (on_cuda("train", model=model, device=device) for device in ("cuda", "cpu"))
    assert on_gpu["weights_on"] == "cuda" and on_cpu["weights_on"] == "cpu"
    assert on_gpu["losses"] == pytest.approx(on_cpu["losses"], abs=1e-5)
    assert on_gpu["norms"] == pytest.approx(on_cpu["norms"], abs=1e-4)
    assert on_gpu["losses"][0] != on_gpu["losses"][2]


@pytest.mark.parametrize("model", MODELS)
def test_the_host_waits_once_in_a_step(on_cuda, model):
    """While it waits, the GPU has nothing to do."""
    done = on_cuda("train", model=model, device="cuda", dtype="bfloat16")
    in_forward = sum(done["waits_in_forward"].values())
    assert in_forward <= WAITS_IN_FORWARD.get(model, 0), done["waits_in_forward"]
    others = {line: count for line, count in done["waits"].items() if line not in done["waits_in_forward"]}
    assert [line.rpartition(":")[0] for line in others] == [UPDATE] and sum(others.values()) == 1, others


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model", MODELS)
def test_half_precision_is_near_float32(on_cuda, model, dtype):
    half = on_cuda("train", model=model, device="cuda", dtype=dtype)
    single = on_cuda("train", model=model, device="cuda")
    assert half["losses"] == pytest.approx(single["losses"], rel=HALVES[dtype])
    assert half["norms"] == pytest.approx(single["norms"], rel=HALVES[dtype])
    assert half["losses"] != single["losses"]


@pytest.mark.parametrize(
    "flags",
    [
        {"loss": "plain", "attention_window_length": 7},
        {"activation_checkpointing": "block"},
        {"activation_checkpointing": "repeat", "attention": "plain"},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["ln_cotformer", "adm"])
def test_options_compute_what_they_do_on_the_cpu(on_cuda, model, flags):
    on_gpu, on_cpu = (on_cuda("train", model=model, device=device, flags=flags) for device in ("cuda", "cpu"))
    assert on_gpu["losses"] == pytest.approx(on_cpu["losses"], abs=1e-5)
    assert on_gpu["norms"] == pytest.approx(on_cpu["norms"], abs=1e-4)
    assert sum(on_gpu["waits"].values()) == 1, on_gpu["waits"]


@pytest.mark.parametrize("attention", ["plain", "flash"])
@pytest.mark.parametrize("model", ["ln_cotformer", "adm", "mla"])
def test_forms_of_attention_agree(on_cuda, model, attention):
    """In half precision, where each takes kernels of its own."""
    forms = {"dtype": "bfloat16", "model": model, "device": "cuda"}
    found, fast = on_cuda("train", **forms, flags={"attention": attention}), on_cuda("train", **forms)
    assert found["losses"] == pytest.approx(fast["losses"], rel=0.01)
    assert found["norms"] == pytest.approx(fast["norms"], rel=0.02)
    assert sum(found["waits"].values()) == 1, found["waits"]

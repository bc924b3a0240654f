"""The items at the paper's size: times, throughput, utilisation, memory, launches, and the aims for them."""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.gpu_gate.kernels import count_launches, profiled
from bench.gpu_gate.rows import Row, row, skipped
from bench.gpu_gate.training import Training
from bench.plan import SIZES, Plan, Size, model_config
from bench.processes import DoesNotFit
from errors import Failure
from hardware import peak_bf16_flops
from models.macs import training_flops

BATCH, ACCUMULATED, WARM_UP, TIMED = 8, 4, 2, 4  # sequences; micro-batches; steps
LARGEST = 64
CAPACITIES = [0.7, 0.5, 0.3, 0.1]  # of adm, whose time depends on them
GIB_A_SEQUENCE, GIB_OF_STATE = 0.6, 4.0  # at least, to begin with a batch that may fit
AIM_RATIO, AIM_MFU, AIM_MFU_CARD = (
    1.5,
    35.0,
    "H100",
)  # over the plain form; percent, at a micro-batch of LARGEST
PLAIN: Mapping[str, Any] = {"attention": "plain", "loss": "plain", "compile": "none"}
OURS: Mapping[str, Any] = {"compile": "auto"}  # as a run of main.py computes without flags
OPTIONS: Mapping[str, dict[str, Any]] = {  # each with the rest as it is in ours
    "not compiled": {"compile": "none"},
    "CUDA graphs": {"cuda_graphs": True},
    "CUDA graphs, not compiled": {"cuda_graphs": True, "compile": "none"},
    "attention masked": {"attention": "masked"},
    "attention flash": {"attention": "flash"},
    "attention flex": {"attention": "flex"},
    "attention plain": {"attention": "plain"},
    "loss plain": {"loss": "plain"},
    "not deterministic": {"deterministic": "false"},
    "recomputed by block": {"activation_checkpointing": "block"},
}


class Timed(NamedTuple):
    """Seconds of a micro-batch, the optimiser's part included; those before the later steps, in which a model
    is built and compiled; kernels and launches."""

    seconds: float
    start_s: float
    counts: dict[str, int]


def time_micro_batch(model: str, size: Size, device: str, flags: dict[str, Any], acc_steps: int) -> Timed:
    """Run in a process of its own, of which the peak memory is then known."""
    started = time.perf_counter()
    training = Training(model, size, device, acc_steps=acc_steps, **flags)
    training.steps(1)
    start_s = time.perf_counter() - started
    training.steps(WARM_UP + TIMED - 1)
    seconds = statistics.median(training.seconds[WARM_UP:]) / acc_steps
    # Micro-batches alone are not graphed; a step of several, profiled, would take long.
    cuda, work = training.device.type == "cuda", training.micro_batch
    events = profiled(partial(training.steps, 1) if training.graphed else work, cuda)
    counts = count_launches(events)
    if training.graphed:
        counts = {name: number // acc_steps for name, number in counts.items()}
    return Timed(seconds, start_s, counts)


def measure(model: str, name: str, batch: int, flags: dict[str, Any], plan: Plan, acc_steps: int) -> Row:
    """A row of `time_micro_batch`: ms, tokens/s, MFU in percent of the card's peak, GiB, launches."""
    size = _size(plan, batch)
    routed = {"training_length_factor": CAPACITIES[: size.flags["n_repeat"] - 1]} if model == "adm" else {}
    found = plan.isolated(time_micro_batch, model, size, plan.device, {**routed, **flags}, acc_steps)
    timed: Timed = found.result
    flops = batch * training_flops(
        model_config(model, size), size.length, routed.get("training_length_factor")
    )
    peak = peak_bf16_flops(torch.cuda.get_device_name(torch.device(plan.device))) if plan.cuda else None
    mfu = {"mfu_percent": 100 * flops / timed.seconds / peak} if peak else {}
    return row(
        name, ms=1e3 * timed.seconds, tokens_per_s=batch * size.length / timed.seconds, **mfu,
        tflops=flops / timed.seconds / 1e12, peak_gib=found.memory_mib / 1024, **timed.counts,
        start_s=timed.start_s,
    )  # fmt: skip


def paper(plan: Plan, model: str) -> Iterator[Row]:
    """Micro-batches of 8: the plain form, ours, and each option. A row that fails says why."""
    acc_steps = plan.pick(ACCUMULATED, ACCUMULATED, 1)
    plain = _measured(model, "plain", BATCH, dict(PLAIN), plan, acc_steps)
    yield plain
    options = {"ours": {}, **OPTIONS} if model == "ln_cotformer" else {"ours": {}}
    for name, flags in options.items():
        if "cuda_graphs" in flags and not plan.cuda:
            yield skipped(name, "CUDA graphs need a GPU")
            continue
        one = _measured(model, name, BATCH, {**OURS, **flags}, plan, acc_steps)
        if "ms" in one and "ms" in plain:
            one["over_plain"] = round(plain["ms"] / one["ms"], 3)
        if name == "ours" and plan.cuda and "over_plain" in one:
            one |= _aim(one["over_plain"] >= AIM_RATIO, f"{AIM_RATIO} times the speed of plain")
        yield one


def largest_batch(plan: Plan) -> Iterator[Row]:
    """Ours at the largest power of two, up to 64 sequences, that fits; LN-CoTFormer without recomputation."""
    batch = plan.pick(LARGEST, LARGEST, 2)
    if plan.cuda:
        memory = torch.cuda.get_device_properties(torch.device(plan.device)).total_memory / 2**30
        fits = max(1.0, (memory - GIB_OF_STATE) / GIB_A_SEQUENCE)
        batch = min(batch, 2 ** math.floor(math.log2(fits)))
    while batch:
        try:
            one = measure("ln_cotformer", f"ours, {batch} sequences", batch, dict(OURS), plan, 1)
        except DoesNotFit as error:
            yield row(f"ours, {batch} sequences", fits="no", why=str(error)[:200])
            batch //= 2
            continue
        card = torch.cuda.get_device_name(torch.device(plan.device)) if plan.cuda else ""
        if AIM_MFU_CARD in card and batch == LARGEST and "mfu_percent" in one:
            one |= _aim(one["mfu_percent"] >= AIM_MFU, f"{AIM_MFU:g} % MFU")
        yield one
        return


def _measured(model: str, name: str, batch: int, flags: dict[str, Any], plan: Plan, acc_steps: int) -> Row:
    """`measure`; where that fails, a row that says so."""
    try:
        return measure(model, name, batch, flags, plan, acc_steps)
    except DoesNotFit as error:
        return row(name, fits="no", why=str(error)[:200])
    except Failure as error:
        return row(name, False, why=str(error)[:300])


def _size(plan: Plan, batch: int) -> Size:
    return SIZES[plan.pick("paper", "paper", "tiny")]._replace(batch=batch)


def _aim(met: bool, aim: str) -> Row:
    return {"aim": f"{aim}: {'met' if met else 'not met'}"}

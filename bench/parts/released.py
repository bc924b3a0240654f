"""The protocol by which the released code was measured, with our models; see bench/baseline.py.

A training step in three phases, a forward pass with the loss over capacities, and 64 tokens from a prompt of
64 at batch 1; medians after 3 rounds of warm-up, each phase in a process of its own. Capacities of training
are drawn as they were there (seed 1000 + step, the warm-up counted), so that both do the same work. With
`--loss chunked` the gradients of the head are made in the forward pass, so that only the sum of forward_s and
backward_s can be set beside the released code's.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.builds import TrainingStep, build, precision_of, random_ids, waiter
from bench.isolated import apart
from bench.plan import SIZES, Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, spread
from errors import UsageError
from models.generation import generate

# Their names -> ours.
NAMES = {
    "base": "standard", "but": "but", "cotformer": "cotformer", "lncot": "ln_cotformer", "adm": "adm",
    "butmod": "adaptive_but",
}  # fmt: skip
FACTORS = (None, 0.5, 0.0)  # of all passes but the first; None: what a model does without being told
ROUTED = ("adm", "adaptive_but")
WARM_UP = 3


def read(path: str | None) -> dict[str, Any] | None:
    """The released code's file; None where none is given. Raises UsageError for one that cannot be it."""
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"cannot read --baseline {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"--baseline {path} is not a baseline's JSON: {error}") from error
    for name in ("results", "settings"):
        if not isinstance(found, dict) or not isinstance(found.get(name), dict):
            raise UsageError(f"--baseline {path} is not a baseline's JSON: it has no {name}")
    return found


def train(model: str, size: Size, device: str, dtype: str, repeats: int):
    precision = precision_of(device, dtype)
    step = TrainingStep(build(model, size, precision), size, precision, phases=True)
    in_turn([step], repeats, WARM_UP, waiter(precision))
    return step.seconds[WARM_UP:]


def forward(model: str, size: Size, device: str, dtype: str, repeats: int, factors: list[float] | None):
    precision = precision_of(device, dtype)
    network = build(model, size, precision).eval()
    ids = random_ids(size, precision)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def work() -> None:
        with torch.no_grad(), precision.autocast():
            network(inputs, targets, length_factors=factors)

    return in_turn([work], repeats, WARM_UP, waiter(precision))[0]


def write(model: str, size: Size, device: str, dtype: str, repeats: int, tokens: int):
    precision = precision_of(device, dtype)
    network = build(model, size, precision).eval()
    prompt = random_ids(size, precision, batch=1)[:, :tokens].tolist()

    def work() -> None:
        with precision.autocast():
            for _ in generate(network, prompt, tokens, temperature=0):
                pass

    return in_turn([work], repeats, 1, waiter(precision))[0]


def measure(theirs: str, dtype: str, plan: Plan) -> list[Row]:
    model, size_name = NAMES[theirs], plan.main_size_name
    size = SIZES[size_name]
    # Another size than theirs is compared with none.
    known = ((read(plan.baseline) or {}).get("results") or {}) if size_name == "baseline" else {}
    released = known.get(theirs, {})
    repeats, tokens = plan.pick(15, 3, 1), plan.pick(64, 64, 4)
    common = (model, size, plan.device, dtype)
    rows = []

    def add(phase: str, function: Callable, arguments: tuple, reference: dict[str, Any]) -> None:
        found = apart(function, *common, *arguments, threads=plan.threads)
        phases = {}
        seconds = found.result
        if function is train:
            names = ("forward", "backward", "optimizer")
            by_phase = zip(names, zip(*seconds, strict=True), strict=True)
            phases = {f"{name}_s": spread(taken).median for name, taken in by_phase}
            seconds = [sum(parts) for parts in seconds]
        if reference.get("median_s"):
            phases["released_s"] = reference["median_s"]
            phases["released_over_ours"] = reference["median_s"] / spread(seconds).median
        if "peak_rss_mib" in reference:
            phases["released_mib"] = reference["peak_rss_mib"] - reference["import_rss_mib"]
        name = f"{theirs}, {size_name}, {dtype}, {phase}"
        rows.append(row("baseline", name, "s", spread(seconds), memory_mib=found.memory_mib, **phases))

    add("train", train, (repeats,), released.get("train", {}))
    settings = {str(_one(s["eval_length_factor"])): s for s in released.get("eval", {}).get("settings", [])}
    for factor in FACTORS if model in ROUTED else FACTORS[:1]:
        factors = None if factor is None else [factor] * (size.flags["n_repeat"] - 1)
        name = "eval" if factor is None else f"eval, factors {factor:g}"
        reference = settings.get(str(factor), {})
        if factor is None:
            reference = released.get("eval", {})
        add(name, forward, (repeats, factors), reference)
    add("generate", write, (min(repeats, 3), tokens), released.get("generate", {}))
    return rows


def _one(factors: list[float] | None) -> float | None:
    """The capacity that all of them are."""
    return None if factors is None else factors[0]


def cases(plan: Plan) -> list[Case]:
    read(plan.baseline)  # refuse a wrong file before anything is measured
    return [
        Case(f"{theirs}, {dtype}", partial(measure, theirs, dtype, plan))
        for theirs, ours in NAMES.items()
        if ours in plan.models
        for dtype in (plan.dtypes if plan.effort == "full" else plan.dtypes[:1])
    ]

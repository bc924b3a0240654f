"""Decoding under budgets: the time saved against the multiply-accumulates saved, of models that route.

Memory is that of all budgets together, and the calibration before them. Routers are calibrated on random
tokens, so that budgets are met; given tokens are decoded, for what random weights write would all be alike.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bench.builds import build, precision_of, waiter
from bench.isolated import apart
from bench.plan import Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, rate, ratio
from evaluation.calibration import capacities_at, cascade, find_thresholds, router_scores, threshold_for
from models.language_model import LanguageModel
from models.macs import macs_of_passes

BUDGETS = (1.0, 0.8, 0.65, 0.5)
MODELS = ("adm", "adaptive_but")
LAYERS = {"n_layer": 8, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 4, "n_head": 8}


def decoding(
    model: LanguageModel, idx: torch.Tensor, precision, thresholds: list[float]
) -> Callable[[], torch.Tensor]:
    """A work that decodes idx (1, T) token by token through the cache; returns the passes taken, (T, 1)."""

    def work() -> torch.Tensor:
        cache, passes = model.new_cache(1), []
        with precision.autocast(), torch.no_grad():
            for token in idx.split(1, dim=1):
                output = model(token, get_logits=True, get_routing=True, cache=cache, thresholds=thresholds)
                passes.append(output["passes"])
        return torch.cat(passes)

    return work


def time_budgets(model: str, size: Size, device: str, dtype: str, tokens: int, repeats: int):
    """Seconds of each budget in each round; and of each its MACs and its mean passes."""
    precision = precision_of(device, dtype)
    network = build(model, size, precision).eval()
    vocabulary, n_repeat = size.flags["vocab_size"], size.flags["n_repeat"]
    batch = torch.randint(0, vocabulary, (8, tokens), generator=torch.Generator().manual_seed(1))
    text, full = [(batch, batch)], [0.0] * (n_repeat - 1)
    with torch.no_grad():
        for router in network.transformer["mod"]:  # scores that differ from token to token
            router.mod_router.weight.mul_(20)
    lowest = cascade(np.concatenate(list(router_scores(network, text, precision, thresholds=full))))
    works, macs, depths = [], [], []
    for budget in BUDGETS:
        factors = capacities_at(lowest, threshold_for(network.config, lowest, tokens, budget))
        thresholds = full if budget == 1.0 else find_thresholds(network, text, factors, precision)[0]
        works.append(decoding(network, batch[:1].to(precision.device), precision, thresholds))
        passes = works[-1]()
        taken = [float((passes > r).sum()) for r in range(n_repeat)]
        macs.append(int(macs_of_passes(network.config, taken, "true")))
        depths.append(passes.float().mean().item())
    return in_turn(works, repeats, 1, waiter(precision)), macs, depths


def measure(model: str, dtype: str, plan: Plan) -> list[Row]:
    tokens = plan.pick(192, 48, 8)
    width, vocabulary = plan.pick((512, 4096), (128, 512), (16, 64))
    size = Size({**LAYERS, "n_embd": width, "vocab_size": vocabulary, "sequence_length": tokens}, 1, "")
    arguments = (model, size, plan.device, dtype, tokens, min(plan.repeats, 5))
    measured = apart(time_budgets, *arguments, threads=plan.threads)
    seconds, macs, depths = measured.result
    rows = []
    where = f"{model}, {plan.effort}, {dtype}"
    for budget, taken, count, depth in zip(BUDGETS, seconds, macs, depths, strict=True):
        saving, speed_up = macs[0] / count, ratio(taken, seconds[0]).median
        rows.append(
            row("budgets", f"{where}, budget {budget:g}", "tokens/s", rate(tokens, taken),
                memory_mib=measured.memory_mib, passes=depth, macs_saving=saving,
                speed_up=speed_up, realised=speed_up / saving)
        )  # fmt: skip
    return rows


def cases(plan: Plan) -> list[Case]:
    return [
        Case(f"{model}, {plan.run_dtype}", partial(measure, model, plan.run_dtype, plan))
        for model in plan.chosen(MODELS)
    ]

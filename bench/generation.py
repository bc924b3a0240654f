"""What the key/value cache and routing are worth in writing text: `python bench/generation.py [--json FILE]`.

Batch 1, models with random weights, all works in turn within one run. First tokens per second with and
without the cache over texts of several lengths; then an adaptive model under several budgets: time saved
against multiply-accumulates saved. Routers are calibrated on random tokens, so that budgets are met.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import compare
from distributed import Precision, choose_device, choose_precision
from files import write_json
from models.config import ModelConfig
from models.generation import generate
from models.language_model import LanguageModel
from models.macs import macs_of_passes
from models.variants import find_variant
from studies.calibration import capacities_at, cascade, find_thresholds, router_scores, threshold_for

MODELS = ("standard", "but", "ln_cotformer", "adm", "adaptive_but", "stick_breaking", "pondernet")
LENGTHS = (64, 256, 1024)
LONG = ("standard", "ln_cotformer", "adm")  # also at the last of the lengths, which takes minutes uncached
BUDGETS = (1.0, 0.8, 0.65, 0.5)
BUDGET_TOKENS = 192
PROMPT = 16


def build(name: str, precision: Precision, **sizes: int) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        model=name, sequence_length=max(LENGTHS) + PROMPT, n_layer_begin=1, n_layer_end=1,
        depth_embedding="linear_learned", **sizes,
    )  # fmt: skip
    return LanguageModel(config).to(precision.device).eval()


def writing(model: LanguageModel, tokens: int, precision: Precision, **settings) -> Callable[[], None]:
    prompt = [list(range(PROMPT))]

    def work() -> None:
        with precision.autocast():
            for _ in generate(model, prompt, tokens, temperature=0, **settings):
                pass

    return work


def decoding(
    model: LanguageModel, idx: torch.Tensor, precision: Precision, thresholds: list[float]
) -> Callable[[], torch.Tensor]:
    """Token by token through the cache, given tokens: what random weights write would all be alike."""

    def work() -> torch.Tensor:
        cache, passes = model.new_cache(1), []
        with precision.autocast(), torch.no_grad():
            for token in idx.split(1, dim=1):
                output = model(token, get_logits=True, get_routing=True, cache=cache, thresholds=thresholds)
                passes.append(output["passes"])
        return torch.cat(passes)

    return work


def cache_table(precision: Precision, repeats: int) -> list[dict]:
    rows = []
    print(f"{'':16}{'tokens':>8}{'cached':>12}{'recomputed':>12}{'ratio':>8}")
    for name in MODELS:
        sizes = {"vocab_size": 4096, "n_layer": 6, "n_head": 4, "n_embd": 256, "n_repeat": 3}
        model = build(name, precision, **sizes)
        for tokens in LENGTHS if name in LONG else LENGTHS[:-1]:
            works = [writing(model, tokens, precision, cached=cached) for cached in (True, False)]
            short = tokens < LENGTHS[-1]
            times = compare(works, repeats if short else 1, warm_up=short)
            cached, recomputed = (tokens / seconds for seconds in times)
            print(
                f"{name:16}{tokens:8}{cached:8.1f} t/s{recomputed:8.1f} t/s{cached / recomputed:8.1f}",
                flush=True,
            )
            rows.append({"model": name, "tokens": tokens, "cached": cached, "recomputed": recomputed})
    return rows


def budget_table(name: str, precision: Precision, repeats: int) -> list[dict]:
    """Speed-up over full depth against the saving in true MACs of the passes that were really taken."""
    sizes = {"vocab_size": 4096, "n_layer": 8, "n_head": 8, "n_embd": 512, "n_repeat": 4}
    model = build(name, precision, **sizes)
    batch = torch.randint(0, 4096, (8, BUDGET_TOKENS), generator=torch.Generator().manual_seed(1))
    text = [(batch, batch)]
    full = [0.0] * 3
    with torch.no_grad():
        for router in model.transformer["mod"]:  # scores that differ from token to token
            router.mod_router.weight.mul_(20)
    lowest = cascade(np.concatenate(list(router_scores(model, text, precision, thresholds=full))))
    works, macs, depths = [], [], []
    for budget in BUDGETS:
        factors = capacities_at(lowest, threshold_for(model.config, lowest, BUDGET_TOKENS, budget))
        thresholds = full if budget == 1.0 else find_thresholds(model, text, factors, precision)[0]
        works.append(decoding(model, batch[:1], precision, thresholds))
        passes = works[-1]()
        taken = [float((passes > r).sum()) for r in range(4)]
        macs.append(macs_of_passes(model.config, taken, "true"))
        depths.append(passes.float().mean().item())
    seconds = compare(works, repeats)
    print(f"\n{find_variant(name).paper_name}, budgets (tokens/s of {BUDGET_TOKENS} tokens, batch 1)")
    print(f"{'budget':>8}{'passes':>8}{'tokens/s':>10}{'speed-up':>10}{'MACs saved':>12}{'realised':>10}")
    rows = []
    for budget, depth, taken, count in zip(BUDGETS, depths, seconds, macs, strict=True):
        speed_up, saving = seconds[0] / taken, macs[0] / count
        print(
            f"{budget:8.2f}{depth:8.2f}{BUDGET_TOKENS / taken:10.1f}{speed_up:10.2f}{saving:12.2f}"
            f"{speed_up / saving:10.2f}",
            flush=True,
        )
        rows.append(
            {"model": name, "budget": budget, "passes": depth, "tokens_per_second": BUDGET_TOKENS / taken,
             "speed_up": speed_up, "macs_saving": saving}
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="torch.bfloat16")
    parser.add_argument("--only", choices=("cache", "budgets"), help="one of the two tables")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    precision = choose_precision(args.dtype, choose_device(args.device))
    threads = torch.get_num_threads()
    print(f"{precision.device}, {threads} threads, {precision.reason}, torch {torch.__version__}")
    started = time.time()
    result = {"device": str(precision.device), "threads": threads, "arithmetic": precision.reason}
    if args.only != "budgets":
        result["cache"] = cache_table(precision, args.repeats)
    if args.only != "cache":
        result["budgets"] = [
            row for name in ("adm", "adaptive_but") for row in budget_table(name, precision, args.repeats)
        ]
    print(f"\n{time.time() - started:.0f} s")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()

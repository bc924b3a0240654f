"""Writing text: prompts into the key/value cache, and tokens one by one, with the cache and without.

Batch 1, models with random weights. Full depth, as models that route have it where no budget is given.
"""

from collections.abc import Callable
from functools import partial

import torch

from bench.builds import build, precision_of, random_ids, waiter
from bench.isolated import apart
from bench.plan import Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, rate, ratio
from models.generation import generate
from models.language_model import LanguageModel

PROMPT = 16
LONG_MODELS = ("standard", "ln_cotformer", "adm")  # also over the longest text, which takes minutes uncached


def room(size: Size, length: int) -> Size:
    """The same for texts of `length` tokens."""
    return size._replace(flags={**size.flags, "sequence_length": length})


def time_prefill(model: str, size: Size, device: str, dtype: str, length: int, repeats: int):
    """Seconds of the pass that fills the cache with `length` tokens and predicts the next one."""
    precision = precision_of(device, dtype)
    network = build(model, room(size, length), precision).eval()
    prompt = random_ids(room(size, length), precision, batch=1)[:, :length]

    def work() -> None:
        with torch.no_grad(), precision.autocast():
            network(prompt, get_logits=True, cache=network.new_cache(1))

    return in_turn([work], repeats, 1, waiter(precision))


def writing(model: LanguageModel, tokens: int, precision, cached: bool) -> Callable[[], None]:
    prompt = [list(range(PROMPT))]

    def work() -> None:
        with precision.autocast():
            for _ in generate(model, prompt, tokens, temperature=0, cached=cached):
                pass

    return work


def time_decode(model: str, size: Size, device: str, dtype: str, tokens: int, repeats: int, warm_up: int):
    """Seconds of writing `tokens` tokens with the cache, and without it."""
    precision = precision_of(device, dtype)
    network = build(model, room(size, tokens + PROMPT), precision).eval()
    works = [writing(network, tokens, precision, cached) for cached in (True, False)]
    return in_turn(works, repeats, warm_up, waiter(precision))


def measure_prefill(model: str, dtype: str, length: int, plan: Plan) -> list[Row]:
    arguments = (model, plan.main_size, plan.device, dtype, length, plan.repeats)
    measured = apart(time_prefill, *arguments, threads=plan.threads)
    return [
        row("prefill", f"{model}, {dtype}, {length} tokens", "tokens/s", rate(length, measured.result[0]),
            memory_mib=measured.memory_mib)
    ]  # fmt: skip


def measure_decode(model: str, dtype: str, tokens: int, plan: Plan) -> list[Row]:
    long = tokens >= 1024
    repeats = 1 if long else min(plan.repeats, 5)
    arguments = (model, plan.main_size, plan.device, dtype, tokens, repeats, 0 if long else 1)
    cached, recomputed = apart(time_decode, *arguments, threads=plan.threads).result
    return [
        row("decode", f"{model}, {dtype}, {tokens} tokens", "tokens/s", rate(tokens, cached),
            recomputed_tokens_per_s=rate(tokens, recomputed).median,
            recomputed_over_cached=ratio(cached, recomputed).median)
    ]  # fmt: skip


def prefill(plan: Plan) -> list[Case]:
    return [
        Case(f"{model}, {dtype}, {length} tokens", partial(measure_prefill, model, dtype, length, plan))
        for model in plan.models
        for dtype in plan.dtypes
        for length in plan.pick((256, 1024), (256,), (8,))
    ]


def decode(plan: Plan) -> list[Case]:
    return [
        Case(f"{model}, {dtype}, {tokens} tokens", partial(measure_decode, model, dtype, tokens, plan))
        for model in plan.models
        for dtype in plan.dtypes[-1:]  # the last of them: what a run would choose
        for tokens in plan.pick((64, 256, 1024), (32,), (4,))
        if tokens < 1024 or model in LONG_MODELS
    ]

"""Writing text: prompts into the key/value cache, and tokens one by one, with the cache and without.

Batch 1, models with random weights. Full depth, as models that route have it where no budget is given. Ours
and the plain path take turns; each one's memory is that of a further process.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from bench.builds import SIDES, build, precision_of, random_ids, waiter
from bench.isolated import apart
from bench.plan import SIZES, Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, rate, ratio
from distributed import Precision
from models.generation import generate

PROMPT = 16
LONG_MODELS = ("standard", "ln_cotformer", "adm")  # also over longer texts, which take minutes uncached

Work = Callable[[], object]
Options = Mapping[str, str]


def room(size: Size, length: int) -> Size:
    """The same for texts of `length` tokens."""
    return size._replace(flags={**size.flags, "sequence_length": length})


def filling(model: str, size: Size, precision: Precision, length: int, options: Options) -> Work:
    """The pass that fills the cache with `length` tokens and predicts the next one."""
    network = build(model, room(size, length), precision, **options).eval()
    prompt = random_ids(room(size, length), precision, batch=1)[:, :length]

    def work() -> None:
        with torch.no_grad(), precision.autocast():
            network(prompt, get_logits=True, cache=network.new_cache(1))

    return work


def writing(
    model: str, size: Size, precision: Precision, tokens: int, options: Options, cached: bool = True
) -> Work:
    """`tokens` tokens, one by one, behind a short prompt."""
    network = build(model, room(size, tokens + PROMPT), precision, **options).eval()
    prompt = [list(range(PROMPT))]

    def work() -> None:
        with precision.autocast():
            for _ in generate(network, prompt, tokens, temperature=0, cached=cached):
                pass

    return work


def time_prefill(model: str, size: Size, device: str, dtype: str, length: int, repeats: int):
    """Seconds of each side in each round."""
    precision = precision_of(device, dtype)
    works = [filling(model, size, precision, length, options) for options in SIDES]
    return in_turn(works, repeats, 1, waiter(precision))


def time_decode(model: str, size: Size, device: str, dtype: str, tokens: int, repeats: int, warm_up: int):
    """Seconds of writing `tokens` tokens with the cache, ours and plain, and of ours without it."""
    precision = precision_of(device, dtype)
    works = [writing(model, size, precision, tokens, options) for options in SIDES]
    works.append(writing(model, size, precision, tokens, SIDES[0], cached=False))
    return in_turn(works, repeats, warm_up, waiter(precision))


def once(
    making: Callable[..., Work],
    model: str,
    size: Size,
    device: str,
    dtype: str,
    length: int,
    options: Options,
) -> None:
    """For its memory."""
    making(model, size, precision_of(device, dtype), length, options)()


def memories(making: Callable[..., Work], *common, threads: int | None) -> dict[str, float]:
    """MiB of ours and the plain path, as `row` takes them."""
    ours, plain = (apart(once, making, *common, options, threads=threads).memory_mib for options in SIDES)
    return {"memory_mib": ours, "plain_memory_mib": plain}


def measure_prefill(model: str, size_name: str, dtype: str, length: int, plan: Plan) -> list[Row]:
    common = (model, SIZES[size_name], plan.device, dtype, length)
    ours, plain = apart(time_prefill, *common, plan.repeats, threads=plan.threads).result
    name = f"{model}, {size_name}, {dtype}, {length} tokens"
    return [
        row("prefill", name, "tokens/s", rate(length, ours), plain=rate(length, plain),
            ratio=ratio(ours, plain), **memories(filling, *common, threads=plan.threads))
    ]  # fmt: skip


def measure_decode(model: str, size_name: str, dtype: str, tokens: int, plan: Plan) -> list[Row]:
    long = tokens >= 1024
    repeats = 1 if long else min(plan.repeats, 5)
    common = (model, SIZES[size_name], plan.device, dtype, tokens)
    timed = apart(time_decode, *common, repeats, 0 if long else 1, threads=plan.threads)
    ours, plain, recomputed = timed.result
    name = f"{model}, {size_name}, {dtype}, {tokens} tokens"
    return [
        row("decode", name, "tokens/s", rate(tokens, ours), plain=rate(tokens, plain),
            ratio=ratio(ours, plain), **memories(writing, *common, threads=plan.threads),
            recomputed_tokens_per_s=rate(tokens, recomputed).median,
            recomputed_over_cached=ratio(ours, recomputed).median)
    ]  # fmt: skip


def prefill(plan: Plan) -> list[Case]:
    dtype = plan.run_dtype
    return [
        Case(
            f"{model}, {size}, {dtype}, {length} tokens",
            partial(measure_prefill, model, size, dtype, length, plan),
        )
        for size in plan.main_sizes
        for model in plan.models
        for length in plan.pick((256, 1024), (256,), (8,))
    ]


def decode(plan: Plan) -> list[Case]:
    dtype = plan.run_dtype
    return [
        Case(
            f"{model}, {size}, {dtype}, {tokens} tokens",
            partial(measure_decode, model, size, dtype, tokens, plan),
        )
        for size in plan.main_sizes
        for model in plan.models
        for tokens in plan.pick((64, 256, 1024), (32,), (4,))
        if tokens <= 64 or model in LONG_MODELS
    ]

"""Items that generate text: with the KV cache and without, by CUDA graphs, on the GPU and on the CPU."""

import inspect
import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from bench.gpu_gate.rows import Row, row
from bench.gpu_gate.training import Training, size_of
from bench.plan import SIZES, Plan
from bench.works import in_turn
from models.generation import generate

UNEVEN = (7, 3, 5)  # lengths of prompts
GRAPHED = "graphed" in inspect.signature(generate).parameters
PROMPT, DECODED = 16, 64  # tokens, at the paper's size
TRAINED = 3  # steps, so that the tokens are not all alike


def texts(
    training: Training, prompts: Sequence[Sequence[int]], count: int, **settings: bool
) -> list[list[int]]:
    """Greedy continuations, a list of tokens for each position. settings: of `generate`."""
    drawn = generate(training.model, prompts, count, temperature=0, **settings)
    return [one.tokens.tolist() for one in drawn]


def generation(plan: Plan) -> Iterator[Row]:
    """Greedy texts in float32: the same with the cache and without, on the GPU and on the CPU; also past the
    model's length, where the text is cut. In bfloat16 they need only come."""
    size, count = size_of(plan), plan.pick(16, 8, 4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size.flags["vocab_size"], (len(UNEVEN), max(UNEVEN)), generator=generator).tolist()
    even, uneven = ids, [tokens[:length] for tokens, length in zip(ids, UNEVEN, strict=True)]
    for model in plan.models:
        own = Training(model, size, plan.device, "float32", tf32=False)
        own.steps(TRAINED)
        cpu = Training(model, size, "cpu", "float32")
        cpu.restore(own.checkpoint())
        found = {}
        for name, prompts in (("even", even), ("uneven", uneven)):
            reference = texts(cpu, prompts, count)
            found[name] = texts(own, prompts, count) == reference
            found[f"{name} without cache"] = texts(own, prompts, count, cached=False) == reference
        if GRAPHED:
            found["graphed"] = texts(own, even, count, graphed=True) == texts(cpu, even, count)
        long = size.length + 2 - max(UNEVEN)  # tokens
        found["cut"] = texts(own, even[:1], long) == texts(cpu, even[:1], long)
        with own.precision.autocast():
            texts(own, uneven, count)
        wrong = [name for name, same in found.items() if not same]
        yield row(model, not wrong, **({"differs": ", ".join(wrong)} if wrong else {}))


def decoding(plan: Plan) -> Iterator[Row]:
    """Tokens one by one at the paper's size, bfloat16, batch 1: with the KV cache, and by CUDA graphs."""
    size, count = SIZES[plan.pick("paper", "paper", "tiny")], plan.pick(DECODED, DECODED, 4)
    for model in ("ln_cotformer", "standard"):
        training = Training(model, size, plan.device)
        prompt = [list(range(plan.pick(PROMPT, PROMPT, 4)))]
        ways = {"cached": {}, **({"graphed": {"graphed": True}} if GRAPHED and plan.cuda else {})}
        found = {}
        with training.precision.autocast():
            for name, settings in ways.items():
                work = partial(texts, training, prompt, count, **settings)
                found[name] = work()
                seconds = statistics.median(in_turn([work], 3, 0)[0])
                same = {"same_text": found[name] == found["cached"]}  # in bfloat16: to rounding
                yield row(f"{model}, {name}", tokens_per_s=count / seconds, **same)

"""Text from a model: prompt in, characters out, with what each token cost."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from data.tokenizers import StreamDecoder, Tokenizer
from distributed import Precision
from errors import UsageError
from models.generation import generate
from models.language_model import LanguageModel


@dataclass
class Cost:
    """Of a text, filled while it is written. passes: through the middle, of each new token's context step.

    seconds: of each step; the first one holds the computation of the prompt.
    """

    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def describe(self, model: LanguageModel) -> str:
        """Speed without the prompt, and average depth: one line."""
        n_begin, n_mid, n_end = model.config.layers
        depth = statistics.mean(self.passes) * n_mid + n_begin + n_end
        steps = self.seconds[1:]
        speed = f"{len(steps) / sum(steps):.1f} tokens/s after the prompt, " if steps else ""
        return (
            f"{len(self.passes)} tokens, {speed}{statistics.mean(self.passes):.2f} of {model.config.repeats} "
            f"passes and {depth:.1f} blocks a token"
        )


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's tokens; the end-of-text token for an empty one. Raises UsageError where there is none."""
    ids = tokenizer.encode(prompt).tolist()
    if ids:
        return ids
    if tokenizer.end_of_text is None:
        raise UsageError("the prompt is empty, and this tokeniser has no end-of-text token to begin with")
    return [tokenizer.end_of_text]


def stream_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    precision: Precision,
    *,
    seed: int,
    costs: Sequence[Cost] | None = None,
    **settings: Any,
) -> Iterator[list[tuple[str, int]]]:
    """Continue prompts of any lengths together, yielding for each a piece of text and the passes it took.

    Characters are never cut in half: a piece may be empty, and the last ones (0 passes) bring the rest. The
    same seed gives the same text. costs: one for each prompt, filled on the way. settings: those of
    `models.generation.generate`. Raises UsageError for a prompt that holds no token.
    """
    decoders = [StreamDecoder(tokenizer) for _ in prompts]
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    started = time.perf_counter()
    with precision.autocast():
        for drawn in generate(
            model,
            ids,
            max_new_tokens,
            n_tokens=tokenizer.vocab_size,
            generator=torch.Generator().manual_seed(seed),
            **settings,
        ):
            seconds, started = time.perf_counter() - started, time.perf_counter()
            passes = drawn.passes.tolist()
            for cost, count in zip(costs or [], passes, strict=bool(costs)):
                cost.passes.append(count)
                cost.seconds.append(seconds)
            pieces = [
                decoder.push(token) for decoder, token in zip(decoders, drawn.tokens.tolist(), strict=True)
            ]
            yield list(zip(pieces, passes, strict=True))
    yield [(decoder.finish(), 0) for decoder in decoders]


def write_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    precision: Precision,
    *,
    seed: int,
    **settings: Any,
) -> str:
    """The continuation of one prompt, whole."""
    steps = stream_texts(model, tokenizer, [prompt], max_new_tokens, precision, seed=seed, **settings)
    return "".join(piece for ((piece, _),) in steps)

"""Text from a model: continuations of prompts, streamed, with the cost of each token."""

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
class TextCost:
    """Cost of one text, filled in while it is generated.

    passes: through the middle, for each generated token. seconds: of each step; the first step includes the
    prompt.
    """

    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def describe(self, model: LanguageModel) -> str:
        """Returns one line with speed, prompt excluded, and average depth."""
        n_begin, n_mid, n_end = model.config.layers
        depth = statistics.mean(self.passes) * n_mid + n_begin + n_end
        steps = self.seconds[1:]
        speed = f"{len(steps) / sum(steps):.1f} tokens/s after the prompt, " if steps else ""
        return (
            f"{len(self.passes)} tokens, {speed}{statistics.mean(self.passes):.2f} of {model.config.repeats} "
            f"passes and {depth:.1f} blocks per token"
        )


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the prompt's token ids; of an empty one, the end-of-text token's.

    Raises:
        UsageError: the prompt is empty and the tokeniser has no end-of-text token, or it has no ids for it.
    """
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
    costs: Sequence[TextCost] | None = None,
    **settings: Any,
) -> Iterator[list[tuple[str, int]]]:
    """Continue prompts of any lengths in one batch.

    Args:
        seed: the same seed gives the same text.
        costs: one for each prompt, filled in on the way.
        settings: keyword arguments of `models.generation.generate`.

    Yields:
        At each step (text, passes) for each prompt: the new piece of text and the passes its token took. A
        piece never ends within a character, so it may be empty; the last step brings the rest, with 0 passes.

    Raises:
        UsageError: a prompt has no tokens.
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
    """Returns the full continuation of one prompt; arguments as for `stream_texts`."""
    steps = stream_texts(model, tokenizer, [prompt], max_new_tokens, precision, seed=seed, **settings)
    return "".join(piece for ((piece, _),) in steps)

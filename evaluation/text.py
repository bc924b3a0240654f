"""Text from a model: prompt in, characters out."""

from collections.abc import Iterator

import torch

from data.tokenizers import StreamDecoder, Tokenizer
from distributed import Precision
from errors import UsageError
from models.generation import generate
from models.language_model import LanguageModel


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    precision: Precision,
    *,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[str]:
    """Continue `prompt`, yielding pieces of text as they are drawn; characters are never cut in half.

    The same seed gives the same text. Raises UsageError for a prompt that holds no token.
    """
    ids = tokenizer.encode(prompt).tolist()
    if not ids:
        if tokenizer.end_of_text is None:
            raise UsageError("the prompt is empty, and this tokeniser has no end-of-text token to begin with")
        ids = [tokenizer.end_of_text]
    decoder = StreamDecoder(tokenizer)
    with precision.autocast():
        for drawn in generate(
            model,
            [ids],
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            n_tokens=tokenizer.vocab_size,
            generator=torch.Generator().manual_seed(seed),
        ):
            yield decoder.push(int(drawn.tokens))
    yield decoder.finish()

"""Writing text: one token at a time, each by running the model over the whole context again.

Shapes: B batch, T tokens, V = vocab_size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from models.language_model import LanguageModel


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits (B, V) -> probabilities (B, V) to draw from.

    temperature 0 puts everything on the likeliest token. top_k keeps the k likeliest tokens, top_p the fewest
    likeliest ones whose probabilities sum to at least p (nucleus sampling, Holtzman et al. 2020; at least one
    token); with both, top_k comes first.
    """
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the mass before this token suffices without it
        outside[:, 0] = False
        probabilities = probabilities.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


@torch.no_grad()
def generate(
    model: LanguageModel,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    n_tokens: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue idx (B, T), yielding the ids (B, 1) of each new position as soon as they are drawn.

    The model sees the last `sequence_length` tokens. n_tokens: ids from here on are never drawn (a vocabulary
    padded beyond what the tokeniser knows). generator: on the CPU, whatever the model's device, so that a
    seed means the same text on each. The model's training mode is left as it was found.
    """
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            context = idx[:, -model.config.sequence_length :]
            logits = model(context, get_logits=True)["logits"][:, -1]
            probabilities = next_token_probabilities(logits[:, :n_tokens], temperature, top_k, top_p)
            drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(idx.device)
            idx = torch.cat((idx, drawn), dim=1)
            yield drawn
    finally:
        model.train(was_training)

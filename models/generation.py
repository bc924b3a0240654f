"""Text generation, one token at a time.

Shapes: B batch, T tokens, V = vocab_size.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.active_tokens import without_waiting
from models.language_model import LanguageModel

if TYPE_CHECKING:
    from models.graphed_decoding import GraphedDecoder

LEAST_TEMPERATURE = 1e-30  # logits divided by less would leave float32's range


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits (B, V) -> probabilities (B, V) to draw from, on the CPU where top_p is used.

    Args:
        temperature: 0 is greedy decoding.
        top_k: keep the k most likely tokens.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least p (nucleus
            sampling, Holtzman et al. 2020); applied after top_k.
    """
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    logits = logits / max(temperature, LEAST_TEMPERATURE)
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1.0:
        probabilities = probabilities.cpu()  # on CUDA, deterministic mode refuses sums of this kind
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # more likely tokens suffice
        outside[:, 0] = False
        probabilities = probabilities.masked_fill(outside.scatter(-1, order, outside), 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


class Drawn(NamedTuple):
    """tokens: (B,) ids. passes: (B,) passes through the middle spent on choosing each."""

    tokens: Tensor
    passes: Tensor


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    n_tokens: int | None = None,
    generator: torch.Generator | None = None,
    thresholds: Sequence[float] | None = None,
    cached: bool = True,
    keep: int | None = None,
    graphed: bool = False,
) -> Iterator[Drawn]:
    """Continue B prompts, ids (B, T) or lists of any lengths, yielding each new position as it is drawn.

    Args:
        n_tokens: ids from here on are never drawn (the vocabulary's padding).
        generator: on the CPU, whatever the model's device, so that a seed gives the same text everywhere.
        thresholds: of models with routers; None: as configured, or full depth. Without a cache, a model
            configured for top-k routes by top-k here too, although this uses later tokens.
        cached: use a KV cache; otherwise the context is recomputed for each token, with the same result.
        keep: a text that outgrows `sequence_length` is cut to its last `keep` tokens, which are recomputed
            at positions from 0; None: half of sequence_length. With keep = sequence_length the window slides
            token by token, as in the released code, and a cache is of no use.
        graphed: with a cache, texts of equal lengths and no tokens that halt, decode at fixed shapes: on CUDA
            as a graph that is replayed (`models.graphed_decoding`). To be used in one autocast context.

    The model's training mode is restored.
    """
    limit = model.config.sequence_length
    keep = max(1, limit // 2) if keep is None else keep
    device = model.lm_head.weight.device
    contexts = [[int(token) for token in prompt][-limit:] for prompt in prompts]
    cache, decoder, was_training = None, None, model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            if any(len(context) > limit for context in contexts):
                contexts = [context if len(context) <= limit else context[-keep:] for context in contexts]
                cache = None
            wanted = {"get_logits": True, "get_routing": True, "thresholds": thresholds}
            if cache is None:
                idx, lengths = _padded(contexts, device)
                if cached:
                    decoder = _decoder(model, len(contexts), thresholds) if graphed and not lengths else None
                    cache = model.new_cache(len(contexts)) if decoder is None else decoder.cache
                output = model(idx, cache=cache, lengths=lengths, **wanted)
            else:
                newest, lengths = torch.tensor([context[-1:] for context in contexts]), None
                if decoder is None:
                    output = model(without_waiting(newest, device), cache=cache, **wanted)
                else:
                    output = decoder(newest)
            logits = output["logits"][:, -1, :n_tokens]
            # The copy of the probabilities waits for that of the passes too: both are on CUDA's one stream.
            passes = output["passes"].to("cpu", non_blocking=True)
            probabilities = next_token_probabilities(logits, temperature, top_k, top_p).cpu()
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            last = [length - 1 for length in lengths] if lengths else [-1] * len(contexts)
            yield Drawn(drawn, passes[range(len(contexts)), last])
            for context, token in zip(contexts, drawn.tolist(), strict=True):
                context.append(token)
    finally:
        model.train(was_training)


def _decoder(model: LanguageModel, batch: int, thresholds: Sequence[float] | None) -> "GraphedDecoder | None":
    """None where a step depends on its tokens."""
    from models.graphed_decoding import GraphedDecoder, has_fixed_shapes

    return GraphedDecoder(model, batch, thresholds) if has_fixed_shapes(model, thresholds) else None


def _padded(contexts: list[list[int]], device: torch.device) -> tuple[Tensor, list[int] | None]:
    """Ids (B, longest), and the lengths where they differ."""
    lengths = [len(context) for context in contexts]
    longest = max(lengths)
    idx = torch.tensor([context + [0] * (longest - len(context)) for context in contexts])
    return without_waiting(idx, device), None if min(lengths) == longest else lengths

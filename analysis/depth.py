"""Router statistics: passes taken and router scores by token type, by position and by loss.

Shapes: B batch, T tokens, V = vocab_size, R = n_repeat, K = R + 2 measures.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.hooks import forward_passes
from analysis.statistics import GroupedMeans
from distributed import Precision
from models.language_model import LanguageModel
from models.losses import IGNORED

CHUNK = 2**25  # logits held in full precision at once


def measures(n_repeat: int) -> list[str]:
    """Names of the K numbers that are averaged over tokens.

    depth: passes taken, 1 to R. loss: cross entropy of the next token, nats; left out without a target.
    lowest_score: the lowest router score of the token; at full depth, a threshold shared by all routers lets
    the token through up to this value. score_r: router r's score, over the tokens that took pass r.
    """
    return ["depth", "loss", "lowest_score", *(f"score_{router}" for router in range(1, n_repeat))]


class DepthStatistics:
    """Means of the measures by token type, position and loss; as large for any text. `finish` ends the text.

    Attributes:
        by_type: a group for each token id. by_position: a group for each position of a window.
        by_loss: a group for each bin of the token's loss. Edges of bins are quantiles of the first
            `loss_sample` tokens with a target, which are held until then.
        passes: (R,), the number of tokens that took 1..R passes.
    """

    def __init__(
        self, n_repeat: int, vocab_size: int, length: int, bins: int = 10, loss_sample: int = 2**16
    ) -> None:
        self.measures = measures(n_repeat)
        self._bins, self._sample = bins, loss_sample
        columns = len(self.measures)
        self.by_type = GroupedMeans(vocab_size, columns)
        self.by_position = GroupedMeans(length, columns)
        self.by_loss = GroupedMeans(bins, columns)
        self.loss_edges: Tensor | None = None  # (bins - 1,)
        self.passes = torch.zeros(n_repeat, dtype=torch.long)
        self._waiting: list[Tensor] = []  # (n, K) each, until the edges are known

    def add(self, inputs: Tensor, losses: Tensor, passes: Tensor, scores: Tensor) -> None:
        """Add a batch: inputs, losses, passes (B, T); scores (B, R - 1, T). A NaN is a missing value."""
        values = torch.cat(
            [
                torch.stack((passes.double(), losses.double(), _lowest(scores).double()), -1),
                scores.transpose(1, 2).double(),
            ],
            -1,
        ).flatten(0, 1)
        position = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        self.by_type.add(inputs.flatten(), values)
        self.by_position.add(position.flatten(), values)
        self.passes += passes.flatten().bincount(minlength=len(self.passes) + 1)[1:].cpu()
        known = values[~losses.flatten().isnan()]
        if self.loss_edges is None:
            self._wait(known)
        else:
            self._add_by_loss(known, self.loss_edges)

    def finish(self) -> None:
        """Set the edges of loss bins if the text had fewer than loss_sample tokens."""
        if self.loss_edges is None and self._waiting:
            self._find_edges()

    @property
    def tokens(self) -> int:
        return int(self.passes.sum())

    @property
    def same_depth(self) -> bool:
        """Whether all tokens took the same number of passes, so that only scores tell them apart."""
        return int((self.passes > 0).sum()) == 1

    def numbers_held(self) -> int:
        """The size of the statistics in numbers."""
        means = (self.by_type, self.by_position, self.by_loss)
        return sum(2 * part.sums.numel() for part in means) + sum(part.numel() for part in self._waiting)

    def _wait(self, values: Tensor) -> None:
        room = self._sample - sum(map(len, self._waiting))
        self._waiting.append(values[:room])
        if len(values) >= room:
            self._add_by_loss(values[room:], self._find_edges())

    def _find_edges(self) -> Tensor:
        sample = torch.cat(self._waiting)
        self._waiting = []
        inner = torch.arange(1, self._bins, dtype=torch.float64, device=sample.device) / self._bins
        edges = self.loss_edges = sample[:, 1].quantile(inner) if len(sample) else inner
        self._add_by_loss(sample, edges)
        return edges

    def _add_by_loss(self, values: Tensor, edges: Tensor) -> None:
        """Bin i holds losses from edge i - 1 (included) to edge i (excluded)."""
        self.by_loss.add(torch.bucketize(values[:, 1].contiguous(), edges, right=True), values)


def _lowest(scores: Tensor) -> Tensor:
    """(B, R - 1, T) -> (B, T); the first router scores every token."""
    return scores.nan_to_num(torch.inf).amin(1)


def measure(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision | None,
    length: int,
    bins: int = 10,
    loss_sample: int = 2**16,
    **routing: Any,
) -> DepthStatistics:
    """Statistics of one forward pass of a model with routers over all batches.

    The arguments are those of `hooks.forward_passes` and `DepthStatistics`; length: the largest T.
    Raises Failure if there is no batch.
    """
    config = model.config
    found = DepthStatistics(config.n_repeat, config.vocab_size, length, bins, loss_sample)
    outputs = forward_passes(model, batches, precision, predict=True, get_routing=True, **routing)
    for inputs, targets, output in outputs:
        losses = token_losses(output["logits"].flatten(0, -2), targets.flatten()).view_as(targets)
        found.add(inputs, losses, output["passes"], output["router_scores"])
    found.finish()
    return found


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each token (N,), NaN without a target. logits (N, V), targets (N,)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = torch.empty(targets.shape, dtype=dtype, device=targets.device)
    for start in range(0, len(targets), step := max(1, CHUNK // logits.shape[-1])):
        part = slice(start, start + step)
        losses[part] = F.cross_entropy(
            logits[part].to(dtype), targets[part], ignore_index=IGNORED, reduction="none"
        )
    return losses.masked_fill(targets == IGNORED, torch.nan)


def unigram_counts(batches: Iterable[tuple[Tensor, Tensor]], vocab_size: int) -> Tensor:
    """How often each token id occurs in the inputs, (V,)."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for inputs, _ in batches:
        counts += inputs.flatten().bincount(minlength=vocab_size)
    return counts


def frequency_bins(counts: Tensor, bins: int) -> Tensor:
    """The frequency bin of each token type, (V,), from rare to frequent: quantiles over the counted tokens.

    counts: (V,). Let F(c) be the fraction of tokens whose type has a count below c, plus half of those whose
    type has count c. A type of count c goes to bin floor(bins * F(c)). Types of equal count share a bin; one
    that is more than 1 / bins of the text leaves bins empty.
    """
    values, place = counts.unique(return_inverse=True)
    share = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, counts.double())
    middle = (share.cumsum(0) - share / 2) / max(1, int(counts.sum()))
    return (bins * middle).long().clamp(max=bins - 1)[place]


def summarise(
    found: DepthStatistics,
    counts: Tensor,
    bins: int,
    types: int,
    min_count: int,
    bytes_of: Callable[[int], bytes],
) -> dict[str, Any]:
    """The content of the .json: means over all tokens and over bins, and the deepest and least deep types.

    Args:
        counts: (V,), how often each token type occurs in the training text.
        bins: of frequency, position and loss; empty bins are left out.
        types: how many types of either end, ranked by mean depth, or by mean lowest score if all tokens took
            equally many passes.
        min_count: occurrences that a ranked type must have.
        bytes_of: the bytes of a token id.
    """
    tokens = found.by_type.counts[:, 0]
    frequency, length = frequency_bins(counts, bins), len(found.by_position.sums)
    position = torch.arange(length) * bins // length
    edges = [None, *found.loss_edges.tolist(), None] if found.loss_edges is not None else []

    def counted(index: int) -> dict[str, Any]:
        here = counts[(frequency == index) & (tokens > 0)]
        first, last = int(here.min()), int(here.max())
        return {"label": _between(first, last), "counts": [first, last], "types": len(here)}

    def placed(index: int) -> dict[str, Any]:
        here = (position == index).nonzero()
        first, last = int(here[0]), int(here[-1])
        return {"label": _between(first, last), "positions": [first, last]}

    def between(index: int) -> dict[str, Any]:
        return {"label": _range(*edges[index : index + 2]), "losses": edges[index : index + 2]}

    ranked_by = "lowest_score" if found.same_depth else "depth"
    ranks = found.by_type.means[:, found.measures.index(ranked_by)]
    often = (tokens >= max(1, min_count)).nonzero().flatten()
    order = often[ranks[often].argsort(descending=True, stable=True)].tolist()

    def described(token: int) -> dict[str, Any]:
        text = bytes_of(token).decode("utf-8", "backslashreplace")
        about = {"label": _visible(text), "token": token, "text": text, "training_count": int(counts[token])}
        return about | _entry(found, found.by_type, token)

    ends = min(types, len(order) // 2)
    everything = found.by_type.merged(torch.zeros(len(tokens), dtype=torch.long), 1)
    return {
        "tokens_by_passes": found.passes.tolist(),
        "alike_in_depth": found.same_depth,
        "mean": _entry(found, everything, 0),
        "by_frequency": _bins(found, found.by_type.merged(frequency, bins), counted),
        "by_position": _bins(found, found.by_position.merged(position, bins), placed),
        "by_loss": _bins(found, found.by_loss, between),
        "types_ranked_by": ranked_by,
        "types_ranked": len(order),
        "deepest": [described(token) for token in order[:ends]],
        "least_deep": [described(token) for token in order[::-1][:ends]],
    }


def _bins(
    found: DepthStatistics, means: GroupedMeans, describe: Callable[[int], dict[str, Any]]
) -> list[dict[str, Any]]:
    return [
        describe(index) | _entry(found, means, index)
        for index, tokens in enumerate(means.counts[:, 0].tolist())
        if tokens
    ]


def _entry(found: DepthStatistics, means: GroupedMeans, group: int) -> dict[str, Any]:
    """The means of one group; None where there is nothing to average."""
    values = [None if value != value else value for value in means.means[group].tolist()]
    return {"tokens": int(means.counts[group, 0]), **dict(zip(found.measures, values, strict=True))}


def _between(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"under {high:.3g}"
    return f"{low:.3g} or more" if high is None else f"{low:.3g} to {high:.3g}"


def _visible(text: str) -> str:
    """In ASCII and in quotes, which shows spaces and bytes that are not characters."""
    return ascii(text).replace("\\\\", "\\")

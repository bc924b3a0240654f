"""Calibration of causal routing: router thresholds that meet capacities or a budget, found on training text.

Shapes: R = n_repeat, N tokens of the sample.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed import Precision
from errors import Failure, UsageError
from files import read_json, write_json
from models.config import ModelConfig
from models.language_model import LanguageModel
from models.macs import macs_of_passes

logger = logging.getLogger(__name__)

HALT_ALL = 2.0  # a threshold above every score


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one checkpoint, found on `tokens` training tokens of `dataset`.

    length_factors: R - 1, the wanted fractions of tokens that take passes 2..R. thresholds, reached: R - 1,
    the routers' thresholds and the fractions they give. budget: the fraction of full compute that the factors
    were chosen for; None if the factors were given. sequence_length: of the sample.
    """

    length_factors: list[float]
    thresholds: list[float]
    reached: list[float]
    budget: float | None
    dataset: str
    sequence_length: int
    tokens: int


def router_scores(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision, **routing: Any
) -> Iterator[np.ndarray]:
    """Yields the router scores of each batch, (B * T, R - 1) in token order.

    Scores of tokens that a router does not see are NaN.

    Args:
        batches: (inputs, targets), each (B, T).
        routing: `length_factors` or `thresholds` of the model's forward pass.
    """
    was_training = model.training
    model.eval()
    try:
        for inputs, _ in batches:
            with torch.no_grad(), precision.autocast():
                output = model(inputs.to(precision.device), get_routing=True, **routing)
            yield output["router_scores"].transpose(1, 2).flatten(0, 1).cpu().numpy()
    finally:
        model.train(was_training)


def find_thresholds(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    length_factors: Sequence[float],
    precision: Precision,
) -> tuple[list[float], list[float], int]:
    """Find the thresholds at which the given fractions of tokens take passes 2..R.

    One router after the other: the tokens that a router sees, and their states, depend on the thresholds of
    the routers before it. A threshold is half-way between two scores, so that rounding does not decide.

    Args:
        batches: the sample, iterated R - 1 times.
        length_factors: R - 1 fractions.

    Returns:
        R - 1 thresholds, the R - 1 fractions that they reach (exact up to one token, and ties), and N.
    """
    count = len(length_factors)
    thresholds, reached, tokens = [HALT_ALL] * count, [0.0] * count, 0
    for router, factor in enumerate(length_factors):
        parts = [part[:, router] for part in router_scores(model, batches, precision, thresholds=thresholds)]
        scores = np.concatenate(parts)
        tokens = len(scores)
        seen = np.sort(scores[~np.isnan(scores)])[::-1]
        wanted = min(round(factor * tokens), len(seen))
        if wanted == 0:
            break
        if wanted == len(seen):
            thresholds[router] = 0.0
        else:
            thresholds[router] = float((seen[wanted - 1] + seen[wanted]) / 2)
        reached[router] = float((seen >= thresholds[router]).sum() / tokens)
    return thresholds, reached, tokens


def cascade(scores: np.ndarray) -> np.ndarray:
    """Returns the running minimum over routers, (N, R - 1).

    A token takes pass r + 1 under one common threshold if the minimum of its first r scores reaches it.
    """
    return np.minimum.accumulate(scores, axis=1)


def capacities_at(cascaded: np.ndarray, threshold: float) -> list[float]:
    """Returns the R - 1 fractions of tokens that take passes 2..R under one common threshold.

    Args:
        cascaded: (N, R - 1), what `cascade` returns.
    """
    return (cascaded >= threshold).mean(axis=0).tolist()


def compute_fraction(config: ModelConfig, length: int, factors: Sequence[float]) -> float:
    """Returns MACs at these capacities, divided by those at full depth ("true" convention).

    Args:
        length: tokens of a sequence.
        factors: R - 1 capacities of passes 2..R.
    """
    full = macs_of_passes(config, [length] * config.n_repeat, "true")
    return macs_of_passes(config, [length, *(length * factor for factor in factors)], "true") / full


def require_possible(config: ModelConfig, length: int, budget: float) -> None:
    """Raises UsageError for a budget, a fraction of full compute, that a single pass exceeds."""
    least = compute_fraction(config, length, [0.0] * (config.n_repeat - 1))
    if budget < least:
        raise UsageError(
            f"a budget of {budget:g} cannot be met: one pass for every token is {least:.3f} of full compute"
        )


def threshold_for(config: ModelConfig, cascaded: np.ndarray, length: int, budget: float) -> float:
    """Returns the lowest common threshold whose compute is at most `budget`, a fraction of full compute.

    Args:
        cascaded: (N, R - 1), what `cascade` returns.
        length: tokens of a sequence.

    Raises:
        UsageError: a single pass exceeds the budget.
    """
    require_possible(config, length, budget)
    candidates = np.concatenate(([0.0], np.unique(cascaded), [HALT_ALL]))
    low, high = 0, len(candidates) - 1  # costs fall as the threshold rises
    while low < high:
        middle = (low + high) // 2
        if compute_fraction(config, length, capacities_at(cascaded, candidates[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return float(candidates[high])


def routers_digest(model: LanguageModel) -> str:
    """Returns a hash of the routers' weights, which every training step changes."""
    weights = [
        weight.detach().cpu().float().numpy().tobytes() for weight in model.transformer["mod"].parameters()
    ]
    return hashlib.sha256(b"".join(weights)).hexdigest()


class CalibrationFile:
    """thresholds_<checkpoint>.json: all calibrations of one checkpoint.

    Calibrations of other weights under the same file name are ignored.

    Raises:
        Failure: the file has other content.
    """

    def __init__(self, checkpoint: Path, model: LanguageModel) -> None:
        self.path = checkpoint.with_name(f"thresholds_{checkpoint.stem}.json")
        self._routers = routers_digest(model)
        self.calibrations: list[Calibration] = []
        if self.path.exists():
            try:
                content = read_json(self.path)
                if content["routers_sha256"] == self._routers:
                    self.calibrations = [Calibration(**entry) for entry in content["calibrations"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Failure(
                    f"{self.path} is not a file of thresholds; move it away, and it is made anew"
                ) from error

    def find(
        self,
        dataset: str,
        sequence_length: int,
        length_factors: Sequence[float] | None = None,
        budget: float | None = None,
    ) -> Calibration | None:
        """Returns the newest calibration for these factors or this budget; None if there is none."""
        for entry in reversed(self.calibrations):
            if (dataset, sequence_length) != (entry.dataset, entry.sequence_length):
                continue
            if budget is not None and entry.budget == budget:
                return entry
            if length_factors is not None and entry.length_factors == list(length_factors):
                return entry
        return None

    def add(self, calibration: Calibration) -> None:
        """Add one and write the file; where it cannot be written, a warning says so."""
        self.calibrations.append(calibration)
        entries = [asdict(entry) for entry in self.calibrations]
        try:
            write_json(self.path, {"routers_sha256": self._routers, "calibrations": entries})
        except Failure as error:
            logger.warning(f"{error}; the thresholds are used now, and will be searched for again next time")


def calibrate(
    model: LanguageModel,
    file: CalibrationFile,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision,
    *,
    dataset: str,
    sequence_length: int,
    length_factors: Sequence[float] | None = None,
    budget: float | None = None,
) -> Calibration:
    """Returns the calibration for capacities or for a budget: from the file, otherwise found and added to it.

    Args:
        batches: training text in sequences of sequence_length tokens, iterated several times.
        length_factors: R - 1 capacities of passes 2..R; or
        budget: a fraction of full compute.

    Raises:
        UsageError: a single pass exceeds the budget.
    """
    known = file.find(dataset, sequence_length, length_factors, budget)
    if known is not None:
        return known
    if length_factors is None:
        full = [0.0] * (model.config.n_repeat - 1)
        cascaded = cascade(np.concatenate(list(router_scores(model, batches, precision, thresholds=full))))
        common = threshold_for(model.config, cascaded, sequence_length, budget)
        length_factors = capacities_at(cascaded, common)
    thresholds, reached, tokens = find_thresholds(model, batches, length_factors, precision)
    found = Calibration(list(length_factors), thresholds, reached, budget, dataset, sequence_length, tokens)
    file.add(found)
    return found

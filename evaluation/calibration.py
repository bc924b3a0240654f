"""Thresholds for causal routing, found on training text, and kept beside the checkpoint for later.

Shapes: R = n_repeat, N tokens of the sample.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed import Precision
from errors import Failure, UsageError
from files import write_json
from models.config import ModelConfig
from models.language_model import LanguageModel
from models.macs import macs_of_passes

NOBODY = 2.0  # a threshold above every score


@dataclass(frozen=True)
class Calibration:
    """thresholds: R - 1, with which `reached` of the tokens took passes 2..R, length_factors being wanted.

    budget: the fraction of full compute that the factors were chosen for; None where they were given. Found
    on `tokens` tokens of the training split of `dataset`, in sequences of sequence_length.
    """

    length_factors: list[float]
    thresholds: list[float]
    reached: list[float]
    budget: float | None
    dataset: str
    sequence_length: int
    tokens: int


def router_scores(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision, **routing
) -> Iterable[np.ndarray]:
    """Batch by batch the scores (tokens, R - 1), in token order; NaN where a router did not see a token.

    routing: `length_factors` or `thresholds`; at full depth every router sees every token.
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
    """Thresholds with which the wanted fractions of these tokens take passes 2..R; those reached; tokens.

    Router by router: which tokens a router sees, and what they look like, depends on the thresholds before
    it. A threshold lies half-way between two scores, so that rounding does not decide. The fractions are met
    up to one token, and ties.
    """
    count = len(length_factors)
    thresholds, reached, tokens = [NOBODY] * count, [0.0] * count, 0
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
    """(N, R - 1) -> the lowest score of a token so far: what a common threshold would have to pass."""
    return np.minimum.accumulate(scores, axis=1)


def capacities_at(cascaded: np.ndarray, threshold: float) -> list[float]:
    """Fractions of the tokens whose cascaded score reaches the threshold: capacities of passes 2..R."""
    return (cascaded >= threshold).mean(axis=0).tolist()


def compute_fraction(config: ModelConfig, length: int, factors: Sequence[float]) -> float:
    """True MACs with these capacities over those at full depth."""
    full = macs_of_passes(config, [length] * config.n_repeat, "true")
    return macs_of_passes(config, [length, *(length * factor for factor in factors)], "true") / full


def require_possible(config: ModelConfig, length: int, budget: float) -> None:
    """Raises UsageError for a budget that one pass exceeds already."""
    least = compute_fraction(config, length, [0.0] * (config.n_repeat - 1))
    if budget < least:
        raise UsageError(
            f"a budget of {budget:g} cannot be met: one pass for every token is {least:.3f} of full compute"
        )


def threshold_for(config: ModelConfig, cascaded: np.ndarray, length: int, budget: float) -> float:
    """The common threshold whose capacities cost `budget` of full compute, or just under it.

    Raises UsageError for a budget that one pass exceeds already.
    """
    require_possible(config, length, budget)
    candidates = np.concatenate(([0.0], np.unique(cascaded), [NOBODY]))
    low, high = 0, len(candidates) - 1  # costs fall as the threshold rises
    while low < high:
        middle = (low + high) // 2
        if compute_fraction(config, length, capacities_at(cascaded, candidates[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return float(candidates[high])


def routers_digest(model: LanguageModel) -> str:
    """Tells one training state from another: every step changes the routers."""
    weights = [
        weight.detach().cpu().float().numpy().tobytes() for weight in model.transformer["mod"].parameters()
    ]
    return hashlib.sha256(b"".join(weights)).hexdigest()


class CalibrationFile:
    """thresholds_<checkpoint>.json: the calibrations of one checkpoint, each found once."""

    def __init__(self, checkpoint: Path, model: LanguageModel) -> None:
        """Of another version of the checkpoint under the same name, nothing is read."""
        self.path = checkpoint.with_name(f"thresholds_{checkpoint.stem}.json")
        self._routers = routers_digest(model)
        self.calibrations: list[Calibration] = []
        if self.path.exists():
            try:
                content = json.loads(self.path.read_text(encoding="utf-8"))
                if content["routers_sha256"] == self._routers:
                    self.calibrations = [Calibration(**entry) for entry in content["calibrations"]]
            except (ValueError, KeyError, TypeError) as error:
                raise Failure(
                    f"{self.path} is not a file of thresholds; move it away, and it is made anew"
                ) from error

    def find(
        self,
        dataset: str | None,
        sequence_length: int,
        length_factors: Sequence[float] | None = None,
        budget: float | None = None,
    ) -> Calibration | None:
        """The newest for these factors, or this budget. dataset: None for any."""
        for entry in reversed(self.calibrations):
            if (dataset or entry.dataset, sequence_length) != (entry.dataset, entry.sequence_length):
                continue
            if budget is not None and entry.budget == budget:
                return entry
            if length_factors is not None and entry.length_factors == list(length_factors):
                return entry
        return None

    def add(self, calibration: Calibration) -> None:
        """Keep one more, in the file."""
        self.calibrations.append(calibration)
        entries = [asdict(entry) for entry in self.calibrations]
        write_json(self.path, {"routers_sha256": self._routers, "calibrations": entries})


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
    """Thresholds for capacities, or for a fraction of full compute: from the file, else found and kept.

    batches: training text, of sequence_length; iterated several times.
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

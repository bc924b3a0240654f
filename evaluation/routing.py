"""Routing of tokens by a trained model: what flags or a budget mean as settings of its forward pass.

Shapes: R = n_repeat.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data import Corpus
from data.batches import EvaluationBatches, validation_subset
from errors import Failure, UsageError
from evaluation.calibration import HALT_ALL, CalibrationFile, calibrate, require_possible
from evaluation.restore import Restored

logger = logging.getLogger(__name__)

CALIBRATION_TOKENS = 2**16
CALIBRATION_SEED = 0


@dataclass(frozen=True)
class Route:
    """A way to route tokens; empty for models without routers.

    settings: keyword arguments of the model's forward pass. about: the same for a report.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether every token takes every pass, whatever its scores."""
        capacities = all(factor == 1.0 for factor in self.about.get("length_factors", []))
        return capacities and all(threshold <= 0.0 for threshold in self.about.get("thresholds", []))

    def __str__(self) -> str:
        if not self.about:
            return ""
        if self.about["routing"] == "topk":
            shown = " ".join(f"{factor:g}" for factor in self.about["length_factors"])
            return f"top-k routing (not causal), capacities {shown}"
        shown = " ".join(f"{threshold:.4g}" for threshold in self.about["thresholds"])
        return f"threshold routing (causal), thresholds {shown}"


def by_topk(length_factors: Sequence[float]) -> Route:
    """Returns top-k routing with R - 1 capacities: fractions of each sequence that take passes 2..R."""
    factors = list(length_factors)
    return Route({"length_factors": factors}, {"routing": "topk", "length_factors": factors})


def by_threshold(thresholds: Sequence[float], **about: Any) -> Route:
    """Returns causal routing with R - 1 thresholds. about: how they were found, for the report."""
    thresholds = list(thresholds)
    return Route({"thresholds": thresholds}, {"routing": "threshold", "thresholds": thresholds, **about})


def calibration_batches(
    corpus: Corpus, sequence_length: int, batch_size: int, tokens: int = CALIBRATION_TOKENS
) -> EvaluationBatches:
    """Returns about `tokens` tokens of training text, drawn from the full split, to find thresholds on."""
    n_batches = max(1, round(tokens / (sequence_length * batch_size)))
    windows = corpus.windows("train", sequence_length)
    return validation_subset(windows, batch_size, n_batches, CALIBRATION_SEED)


class RouteFinder:
    """Finds routes for a restored model; unknown thresholds are calibrated on training text."""

    def __init__(self, run: Restored) -> None:
        self.run, self.config = run, run.model.config

    def from_flags(self) -> Route:
        """Returns the route of --routing, --eval_length_factor and --routing_threshold."""
        config = self.config
        if not config.variant.routed:
            return Route()
        count = config.n_repeat - 1
        if config.routing == "topk":
            return by_topk(config.eval_length_factor or [1.0] * count)
        if config.routing_threshold is not None:
            return by_threshold(config.routing_threshold)
        if config.eval_length_factor is None:
            return by_threshold([0.0] * count)
        return self.calibrated(length_factors=config.eval_length_factor)

    def for_generation(self, budget: Sequence[float] | None) -> Route:
        """Returns a causal route, as generation needs one: of the budget, else of the flags, else full depth.

        Args:
            budget: as for `from_budget`.
        """
        config = self.config
        if budget is not None:
            return self.from_budget(budget)
        if not config.variant.routed or config.routing == "threshold":
            return self.from_flags()
        return by_threshold([0.0] * (config.n_repeat - 1))

    def from_budget(self, budget: Sequence[float]) -> Route:
        """Returns a causal route.

        Args:
            budget: one number, a fraction of full compute; or R - 1 thresholds.

        Raises:
            UsageError: the model has no routers, or the numbers are neither.
        """
        config = self.config
        shown = " ".join(f"{number:g}" for number in budget)
        if not config.variant.routed:
            raise UsageError(
                f"--budget {shown}: {config.model} does not route tokens; adm and adaptive_but do"
            )
        if len(budget) == 1:
            if not 0.0 < budget[0] <= 1.0:
                raise UsageError(f"--budget {shown}: a fraction of full compute is above 0 and at most 1")
            require_possible(config, self.run.sequence_length, budget[0])
            return self.calibrated(budget=budget[0])
        if len(budget) != config.n_repeat - 1:
            raise UsageError(
                f"--budget {shown}: give one fraction of full compute, or {config.n_repeat - 1} thresholds"
            )
        return by_threshold(budget)

    def calibrated(
        self,
        length_factors: Sequence[float] | None = None,
        budget: float | None = None,
        log_level: int = logging.INFO,
    ) -> Route:
        """Returns the causal route that meets R - 1 capacities or a fraction of full compute.

        Args:
            length_factors: the capacities; or
            budget: the fraction.
            log_level: of the message that thresholds are being searched for.

        Raises:
            Failure: thresholds are not known, and there is no training text to find them on.
        """
        run = self.run
        if length_factors is not None and all(factor in (0.0, 1.0) for factor in length_factors):
            return by_threshold([0.0 if factor else HALT_ALL for factor in length_factors])
        file = CalibrationFile(run.path, run.model)
        found = file.find(run.args.dataset, run.sequence_length, length_factors, budget)
        if found is None:
            corpus = self._open_corpus(length_factors, budget)
            logger.log(log_level, "finding thresholds on training text; %s keeps them", file.path)
            found = calibrate(
                run.model,
                file,
                calibration_batches(corpus, run.sequence_length, run.args.batch_size),
                run.precision,
                dataset=run.args.dataset,
                sequence_length=run.sequence_length,
                length_factors=length_factors,
                budget=budget,
            )
        about = asdict(found)
        return by_threshold(about.pop("thresholds"), calibration=about)

    def _open_corpus(self, length_factors: Sequence[float] | None, budget: float | None) -> Corpus:
        try:
            return self.run.open_corpus()
        except Failure as error:
            wanted = f"--budget {budget:g}"
            if length_factors is not None:
                wanted = f"--eval_length_factor {' '.join(f'{factor:g}' for factor in length_factors)}"
            raise Failure(
                f"thresholds for {wanted} are not known, and there is no text to find them on: {error}; "
                f"where the text is, run python calibrate.py --checkpoint {self.run.path} {wanted}"
            ) from error

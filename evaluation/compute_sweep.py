"""Perplexity over compute of one checkpoint with routers (Figure 4).

Three series: the router's choice of tokens by top-k and by thresholds, and fixed depths, where all tokens
take the same number of passes. Shapes: R = n_repeat, N tokens of the validation set.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.batches import EvaluationBatches
from errors import Failure, UsageError
from evaluation.calibration import capacities_at, threshold_for
from evaluation.reports import check_place, summarise
from evaluation.restore import Restored
from evaluation.router_weights import extract, identity, read_weights, require_routers, weights_path
from evaluation.routing import RouteFinder, by_topk
from files import read_json, write_json
from models.macs import CONVENTIONS, macs_of_passes
from optim.validation import evaluate

logger = logging.getLogger(__name__)

# The published figure's settings: capacities are the fractions of tokens whose cascaded score is at least
# 1 - setting.
SWEEP = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0)
SERIES = ("router, top-k", "router, threshold", "fixed depth")
STEPS = 256  # capacities are rounded up to multiples of 1/256


@dataclass(frozen=True)
class Point:
    """A point of the figure, before it is measured.

    series: one of SERIES. setting: of SWEEP, or the number of passes at fixed depth. length_factors: R - 1
    capacities of passes 2..R. causal: met by thresholds rather than by top-k.
    """

    series: str
    setting: float
    length_factors: tuple[float, ...]
    causal: bool

    @property
    def name(self) -> str:
        return f"{self.series}, {self.setting:g}"

    @property
    def work(self) -> tuple:
        """Equal for points with the same evaluation: both routings agree where all tokens or none pass."""
        return self.length_factors, self.causal and any(0.0 < factor < 1.0 for factor in self.length_factors)


def sweep_capacities(cascaded: np.ndarray, setting: float) -> tuple[float, ...]:
    """Returns the R - 1 capacities of one setting. cascaded: (N, R - 1), the lowest scores so far."""
    return tuple(math.ceil(STEPS * part) / STEPS for part in capacities_at(cascaded, 1.0 - setting))


def sweep_points(cascaded: np.ndarray, n_repeat: int, more: Sequence[float] = ()) -> list[Point]:
    """Returns all points of the figure.

    Args:
        cascaded: (N, R - 1), the lowest scores so far of the validation set.
        more: settings besides SWEEP.
    """
    found = []
    for series, causal in zip(SERIES[:2], (False, True), strict=True):
        for setting in sorted({*SWEEP, *more}):
            found.append(Point(series, setting, sweep_capacities(cascaded, setting), causal))
    for passes in range(1, n_repeat + 1):
        factors = tuple(float(repeat <= passes) for repeat in range(2, n_repeat + 1))
        found.append(Point(SERIES[2], passes, factors, True))
    return found


class SweepFile:
    """ppl_per_mac_<checkpoint>.json, written after every point, so that an interruption costs one at most.

    about: everything that the numbers depend on.

    Raises:
        UsageError: the file holds points of something else.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.entries: list[dict[str, Any]] = []
        if not path.exists():
            return
        content = read_sweep(path)
        differing = [key for key in about if content["about"].get(key) != about[key]]
        if differing:
            key = differing[0]
            raise UsageError(
                f"{path} holds points with {key} {content['about'].get(key)}, and {about[key]} is asked for "
                "now; give another --output-dir, or move that file away"
            )
        self.entries = content["points"]

    def missing(self, points: list[Point]) -> Iterator[Point]:
        """Yields the points that the file does not hold yet."""
        known = {(old["series"], old["setting"], tuple(old["length_factors"])) for old in self.entries}
        return (point for point in points if (point.series, point.setting, point.length_factors) not in known)

    def add(self, new: dict[str, Any]) -> None:
        """Add one point and write the file."""
        self.entries.append(new)
        write_json(self.path, {"about": self.about, "points": self.entries})


def read_sweep(path: Path) -> dict[str, Any]:
    """Returns the file's content.

    Raises:
        UsageError: it is missing.
        Failure: it is not a file of get_ppl_per_mac.py.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing; python get_ppl_per_mac.py --checkpoint ... writes it")
    try:
        content = read_json(path)
        for point in content["points"]:
            point["series"], point["perplexity"], point["macs_per_sequence"]["paper"]
        content["about"]["sequence_length"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} is not a file of get_ppl_per_mac.py; move it away") from error
    return content


def measure(run: Restored, output_dir: Path | None, budgets: Sequence[float] = ()) -> Path:
    """Measure the points that the file does not hold yet; returns its path.

    Args:
        output_dir: of the files; None: next to the checkpoint.
        budgets: fractions of full compute to add points at. Models whose scores are close together need them:
            the published settings then fall on few capacities.

    Raises:
        UsageError: the model has no routers, a budget is too small, or a file holds points of something else.
    """
    require_routers(run)
    about = {"checkpoint": run.path.name, "batch_size": run.args.batch_size, **identity(run, "val")}
    path = (output_dir or run.path.parent) / f"ppl_per_mac_{run.path.stem}.json"
    check_place(path, output_dir)
    file = SweepFile(path, about)
    cascaded = _cascaded_scores(run, output_dir)
    more = [1.0 - threshold_for(run.model.config, cascaded, run.sequence_length, part) for part in budgets]
    points = sweep_points(cascaded, run.model.config.n_repeat, more)
    missing = list(file.missing(points))
    if len(missing) < len(points):
        logger.info("%d of %d points are in %s already", len(points) - len(missing), len(points), file.path)
    routes, batches = RouteFinder(run), run.batches("val")
    known: dict[tuple, dict[str, Any]] = {}
    for point in tqdm(missing, desc="points", unit="point", disable=None):
        if point.work not in known:
            known[point.work] = _evaluate(run, routes, point, batches)
        new = {
            "series": point.series,
            "setting": point.setting,
            "length_factors": list(point.length_factors),
            **known[point.work],
        }
        file.add(new)
        logger.info("%s", _line(point, new))
    return file.path


def _cascaded_scores(run: Restored, output_dir: Path | None) -> np.ndarray:
    """Returns the lowest scores so far (N, R - 1) of the validation set, extracted where they are missing."""
    # Another sample size of the same tokens serves as well.
    whole = weights_path(replace(run, replaced={}), output_dir)
    path = weights_path(run, output_dir)
    path = path if path.exists() else whole
    if path.exists():
        arrays, summary = read_weights(path)
        wanted = {name: value for name, value in identity(run, "val").items() if name != "sample_size"}
        for name, value in wanted.items():
            if summary.get(name) != value:
                raise UsageError(
                    f"{path} holds scores with {name} {summary.get(name)}, and {value} is asked for now; "
                    "give another --output-dir, or run get_router_weights.py again"
                )
        return arrays["cascade"]
    path, _ = extract(run, "val", output_dir)
    logger.info("written: %s", path)
    return read_weights(path)[0]["cascade"]


def _evaluate(run: Restored, routes: RouteFinder, point: Point, batches: EvaluationBatches) -> dict[str, Any]:
    """Evaluate one point; its MACs count the tokens that took each pass."""
    factors = point.length_factors
    route = by_topk(factors)
    if point.causal:
        route = routes.calibrated(length_factors=factors, log_level=logging.DEBUG)
    bar = tqdm(batches, desc=point.name, unit="batch", disable=None, leave=False)
    result = evaluate(run.model, bar, run.precision, **route.settings)
    macs = {name: macs_of_passes(run.model.config, result.tokens_per_pass, name) for name in CONVENTIONS}
    return {**route.about, "macs_per_sequence": macs, **summarise(result)}


def _line(point: Point, found: dict[str, Any]) -> str:
    return (
        f"{point.name:24} perplexity {found['perplexity']:.3f}  "
        f"{found['macs_per_sequence']['paper'] / 1e9:.4g} GMACs  depth {found['average_depth']:.2f}  "
        f"{1e6 * found['seconds_per_token']:.1f} us/token"
    )

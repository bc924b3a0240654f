"""Perplexity over compute of one checkpoint with routers (Figure 4): the points, and their numbers."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.batches import EvaluationBatches
from errors import Failure, UsageError
from evaluation.calibration import capacities_at, threshold_for
from evaluation.report import summarise
from evaluation.restore import Restored
from evaluation.router_weights import extract, identity, read_weights, require_routers, weights_path
from evaluation.routing import RouteFinder, by_topk
from files import write_json
from models.macs import CONVENTIONS, macs_of_passes
from optim.validation import evaluate

# Of the published figure: capacities are the fractions of tokens whose cascaded score is at least 1 -
# threshold.
SWEEP = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0)
SERIES = ("router, top-k", "router, threshold", "fixed depth")
STEPS = 256  # capacities are rounded up to multiples of 1/256


@dataclass(frozen=True)
class Point:
    """series: one of SERIES. setting: the threshold of the sweep, or the number of passes.

    length_factors: capacities of passes 2..R. causal: whether to meet them by thresholds.
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
        """What is computed: points with the same need it once. With all or nobody, both routings are one."""
        return self.length_factors, self.causal and any(0.0 < factor < 1.0 for factor in self.length_factors)


def sweep_capacities(cascaded: np.ndarray, threshold: float) -> tuple[float, ...]:
    """cascaded (N, R - 1), the lowest scores so far of a sample -> capacities of one point of the sweep."""
    return tuple(math.ceil(STEPS * part) / STEPS for part in capacities_at(cascaded, 1.0 - threshold))


def points(cascaded: np.ndarray, n_repeat: int, more: Sequence[float] = ()) -> list[Point]:
    """All of them: the router's sweep by top-k and by thresholds, and all tokens through 1..R passes.

    more: further thresholds of the sweep.
    """
    found = []
    for series, causal in zip(SERIES[:2], (False, True), strict=True):
        for threshold in sorted({*SWEEP, *more}):
            found.append(Point(series, threshold, sweep_capacities(cascaded, threshold), causal))
    for passes in range(1, n_repeat + 1):
        factors = tuple(float(repeat <= passes) for repeat in range(2, n_repeat + 1))
        found.append(Point(SERIES[2], passes, factors, True))
    return found


class SweepFile:
    """ppl_per_mac_<checkpoint>.json: written anew after every point, so that an interruption costs one."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """about: what the numbers depend on. Raises UsageError when the file is of something else."""
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

    def missing(self, wanted: list[Point]) -> Iterator[Point]:
        """Those that have no entry yet."""
        known = {(old["series"], old["setting"], tuple(old["length_factors"])) for old in self.entries}
        return (point for point in wanted if (point.series, point.setting, point.length_factors) not in known)

    def add(self, new: dict[str, Any]) -> None:
        self.entries.append(new)
        write_json(self.path, {"about": self.about, "points": self.entries})


def read_sweep(path: Path) -> dict[str, Any]:
    """The content of a file. Raises UsageError when it is missing, Failure when it is something else."""
    if not path.is_file():
        raise UsageError(f"{path} is missing; python get_ppl_per_mac.py --checkpoint ... writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for point in content["points"]:
            point["series"], point["perplexity"], point["macs_per_sequence"]["paper"]
        content["about"]["sequence_length"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} is not a file of get_ppl_per_mac.py; move it away") from error
    return content


def measure(run: Restored, output_dir: Path | None, budgets: Sequence[float] = ()) -> Path:
    """All points that are not in the file yet; returns its path. One model load serves them all.

    budgets: fractions of full compute to add points at, for a model whose scores the published thresholds do
    not divide.
    """
    require_routers(run)
    about = {"checkpoint": run.path.name, "batch_size": run.args.batch_size, **identity(run, "val")}
    path = (output_dir or run.path.parent) / f"ppl_per_mac_{run.path.stem}.json"
    file = SweepFile(path, about)
    cascaded = _cascade(run, output_dir)
    more = [1.0 - threshold_for(run.model.config, cascaded, run.sequence_length, part) for part in budgets]
    wanted = points(cascaded, run.model.config.n_repeat, more)
    missing = list(file.missing(wanted))
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} points stand in {file.path} already")
    routes, batches = RouteFinder(run, say=lambda text: None), run.batches("val")
    known: dict[tuple, dict[str, Any]] = {}
    with tqdm(missing, desc="points", unit="point", disable=not sys.stderr.isatty()) as progress:
        for point in progress:
            if point.work not in known:
                known[point.work] = _measured(run, routes, point, batches)
            new = {
                "series": point.series,
                "setting": point.setting,
                "length_factors": list(point.length_factors),
                **known[point.work],
            }
            file.add(new)
            progress.write(_line(point, new))
    return file.path


def _cascade(run: Restored, output_dir: Path | None) -> np.ndarray:
    """The cascaded scores (N, R - 1) of the validation set, extracted where they are missing."""
    path = weights_path(run, output_dir)
    if path.exists():
        arrays, summary = read_weights(path)
        # A larger or smaller sample of the same tokens is as good.
        wanted = {name: value for name, value in identity(run, "val").items() if name != "sample_size"}
        for name, value in wanted.items():
            if summary.get(name) != value:
                raise UsageError(
                    f"{path} holds scores with {name} {summary.get(name)}, and {value} is asked for now; "
                    "give another --output-dir, or run get_router_weights.py again"
                )
        return arrays["cascade"]
    path, _ = extract(run, "val", output_dir)
    print(f"written: {path}")
    return read_weights(path)[0]["cascade"]


def _measured(run: Restored, routes: RouteFinder, point: Point, batches: EvaluationBatches) -> dict[str, Any]:
    """One evaluation. MACs are those of the tokens that really took each pass."""
    factors = point.length_factors
    route = routes.calibrated(length_factors=factors) if point.causal else by_topk(factors)
    watched = tqdm(batches, desc=point.name, unit="batch", disable=not sys.stderr.isatty(), leave=False)
    result = evaluate(run.model, watched, run.precision, **route.settings)
    summary = summarise(result)
    macs = {name: macs_of_passes(run.model.config, result.tokens_per_pass, name) for name in CONVENTIONS}
    return {**route.about, "macs_per_sequence": macs, **summary}


def _line(point: Point, found: dict[str, Any]) -> str:
    return (
        f"{point.name:24} perplexity {found['perplexity']:.3f}  "
        f"{found['macs_per_sequence']['paper'] / 1e9:.4g} GMACs  depth {found['average_depth']:.2f}  "
        f"{1e6 * found['seconds_per_token']:.1f} us/token"
    )

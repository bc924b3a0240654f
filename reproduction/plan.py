"""Which runs the rows of the experiment table stand for, and how far each is. No torch."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config
from config.experiments import BY_NAME, EXPERIMENTS
from errors import Failure, UsageError, unknown
from optim.run_folder import covered_by_summary, in_folder, step_of

NOT_TRAINED = "figure3"  # counts only
SEEDS = (0, 1, 2)
SWEEP_POINTS = 20  # of Figure 4, with either routing, beside one for each fixed depth


@dataclass
class Run:
    """One training. rows: the names of those that it is the run of: tables share some."""

    seed: int
    args: Namespace
    flags: list[str]
    folder: Path
    rows: list[str] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        return covered_by_summary(self.folder, self.args.iterations)

    @property
    def evaluation(self) -> Path:
        """What eval.py writes."""
        return self.folder / "eval_summary_ckpt.json"

    @property
    def sweep(self) -> Path | None:
        """What get_ppl_per_mac.py writes, for models that route (Figure 4)."""
        routes = self.args.model.startswith("adaptive_cotformer")
        return self.folder / "ppl_per_mac_ckpt.json" if routes else None

    @property
    def swept(self) -> bool:
        """Whether all points of the sweep are there; it is written anew after each."""
        content = self.sweep_result()
        return content is not None and len(content["points"]) >= SWEEP_POINTS + self.args.n_repeat

    @property
    def complete(self) -> bool:
        return self.trained and self.result() is not None and (self.sweep is None or self.swept)

    def step(self) -> int:
        """Of the newest checkpoint."""
        saved = in_folder(self.folder)
        step = step_of(saved[0]) if saved else 0
        return self.args.iterations if step is None else step

    def result(self) -> dict[str, Any] | None:
        """The evaluation's content; None where there is none yet. Raises Failure for a damaged one."""
        return _read(self.evaluation)

    def sweep_result(self) -> dict[str, Any] | None:
        """The sweep's content; the same of it."""
        return _read(self.sweep)

    def summary(self) -> dict[str, Any] | None:
        """What main.py wrote at the end."""
        return _read(self.folder / "summary.json")

    def downstream(self) -> dict[str, Any] | None:
        """What `evaluation.lm_eval` wrote, if it was called."""
        return _read(self.folder / "lm_eval_ckpt.json")


def _read(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Failure(f"{path} is damaged ({error}); delete it, and run again") from error


def choose_rows(patterns: Sequence[str]) -> list[str]:
    """Names of rows: all that train something, or those that begin so (`table1`, `table1/but`).

    Raises UsageError for a pattern that fits none.
    """
    names = [experiment.name for experiment in EXPERIMENTS if not experiment.name.startswith(NOT_TRAINED)]
    if not patterns:
        return names
    chosen: list[str] = []
    for pattern in patterns:
        found = [pattern] if pattern in BY_NAME else [name for name in names if name.startswith(pattern)]
        if not found:
            raise UsageError(unknown(f"there is no row {pattern}", pattern, BY_NAME))
        chosen += found
    return list(dict.fromkeys(chosen))


def make_plan(rows: Sequence[str], scale: str, seeds: Sequence[int], flags: Sequence[str]) -> list[Run]:
    """The runs of these rows, each once, seed by seed: what is there early says something about all rows.

    flags: of main.py, for all of them. Raises UsageError for what main.py would refuse.
    """
    runs: dict[Path, Run] = {}
    for seed in seeds:
        for row in rows:
            words = ["--experiment", row, "--scale", scale, "--seed", str(seed), *flags]
            args = config.parse_args(words)
            folder = config.experiment_dir(args)
            run = runs.setdefault(folder, Run(seed, args, words, folder))
            run.rows.append(row)
    return list(runs.values())

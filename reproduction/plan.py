"""Which runs the rows of the experiment table stand for, and how far each is. No torch."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config
from config.experiments import EXPERIMENTS
from errors import Failure, UsageError, unknown
from optim.run_folder import covered_by_summary, in_folder, step_of
from reproduction.router import FIXED

NOT_TRAINED = "figure3"  # counts only
SEEDS = (0, 1, 2)
SWEEP_POINTS = 10  # of Figure 4, at least, with either routing, beside one for each fixed depth
OURS = ("experiment", "scale", "seed", "exp_name")  # flags of main.py that a plan gives


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
        if content is None:
            return False
        counts = Counter(point["series"] for point in content["points"])
        fixed = counts.pop(FIXED, 0)
        return fixed >= self.args.n_repeat and len(counts) == 2 and min(counts.values()) >= SWEEP_POINTS

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
        return _read(self.evaluation, ("loss", "perplexity", "perplexity_interval_95", "batch_losses"))

    def sweep_result(self) -> dict[str, Any] | None:
        """The sweep's content; the same of it."""
        return _read(self.sweep, ("about", "points"))

    def summary(self) -> dict[str, Any] | None:
        """What main.py wrote at the end."""
        needed = (
            "training_seconds",
            "processes",
            "device",
            "arithmetic",
            "finished",
            "versions",
            "git_commit",
        )
        return _read(self.folder / "summary.json", needed)

    def downstream(self) -> dict[str, Any] | None:
        """What `evaluation.lm_eval` wrote, if it was called."""
        return _read(self.folder / "lm_eval_ckpt.json", ("results",))

    @property
    def as_published(self) -> bool:
        """Whether its numbers may be set against the paper's: the same experiment on the same corpus."""
        published = config.parse_args(["--experiment", self.rows[0], "--seed", str(self.seed)])
        ours, theirs = ((a.dataset, a.iterations, config.identity(a)) for a in (self.args, published))
        return ours == theirs


def _read(path: Path | None, needed: Sequence[str]) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in needed if name not in content]
        if missing:
            raise ValueError(f"there is no {missing[0]} in it")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise Failure(f"{path} is damaged ({error}); delete it, and run again") from error
    return content


def choose_rows(patterns: Sequence[str]) -> list[str]:
    """Names of rows: all that train something, or those that begin so (`table1`, `table1/but`).

    Raises UsageError for a pattern that fits none.
    """
    names = [experiment.name for experiment in EXPERIMENTS if not experiment.name.startswith(NOT_TRAINED)]
    if not patterns:
        return names
    chosen: list[str] = []
    for pattern in patterns:
        found = [pattern] if pattern in names else [name for name in names if name.startswith(pattern)]
        if not found and pattern.startswith(NOT_TRAINED):
            raise UsageError(f"{pattern}: nothing is trained for {NOT_TRAINED}; python plot_fig3.py draws it")
        if not found:
            raise UsageError(unknown(f"there is no row {pattern}", pattern, names))
        chosen += found
    return list(dict.fromkeys(chosen))


def make_plan(rows: Sequence[str], scale: str, seeds: Sequence[int], flags: Sequence[str]) -> list[Run]:
    """The runs of these rows, each once, seed by seed: what is there early says something about all rows.

    flags: of main.py, for all of them. Raises UsageError for what main.py would refuse, and for flags that
    would have two different runs in one folder.
    """
    for word in flags:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in OURS:
            raise UsageError(f"--{name} behind -- : rows, --seeds and --scale decide that")
    runs: dict[Path, Run] = {}
    for seed in dict.fromkeys(seeds):
        for row in rows:
            words = ["--experiment", row, "--scale", scale, "--seed", str(seed), *flags]
            args = config.parse_args(words)
            folder = config.experiment_dir(args)
            run = runs.setdefault(folder, Run(seed, args, words, folder))
            if run.args.iterations != args.iterations:
                raise UsageError(
                    f"{row} and {run.rows[0]} would be one run, of {args.iterations:,} and "
                    f"{run.args.iterations:,} iterations; ask for them one after the other, in two "
                    "--results_base_folder"
                )
            run.rows.append(row)
    return list(runs.values())

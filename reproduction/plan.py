"""The runs of experiments: flags, folder, progress and results of each. Imports no torch."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config
from config.experiments import EXPERIMENTS
from errors import Failure, UsageError, unknown
from files import read_json
from optim.checkpoint import covered_by_summary, in_folder, step_of
from reproduction.statistics import FIXED_DEPTH

NOT_TRAINED = "figure3"  # only MACs are counted
SEEDS = (0, 1, 2)
SWEEP_POINTS = 10  # the fewest points of a complete Figure 4 for each kind of routing
PLANNED = ("experiment", "scale", "seed", "exp_name")  # flags of main.py that a plan sets


@dataclass
class Run:
    """One training, with the names of the experiments that it belongs to: tables share some."""

    seed: int
    args: Namespace
    flags: list[str]
    folder: Path
    experiments: list[str] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        return covered_by_summary(self.folder, self.args.iterations)

    @property
    def evaluation(self) -> Path:
        """The file that eval.py writes."""
        return self.folder / "eval_summary_ckpt.json"

    @property
    def sweep(self) -> Path | None:
        """The file that get_ppl_per_mac.py writes, for models with routers (Figure 4)."""
        routes = self.args.model.startswith("adaptive_cotformer")
        return self.folder / "ppl_per_mac_ckpt.json" if routes else None

    @property
    def swept(self) -> bool:
        """Whether the sweep has all its points; the file is rewritten after each point."""
        content = self.sweep_result()
        if content is None:
            return False
        counts = Counter(point["series"] for point in content["points"])
        fixed = counts.pop(FIXED_DEPTH, 0)
        return fixed >= self.args.n_repeat and len(counts) == 2 and min(counts.values()) >= SWEEP_POINTS

    @property
    def complete(self) -> bool:
        return self.trained and self.result() is not None and (self.sweep is None or self.swept)

    def step(self) -> int:
        """The step of the newest checkpoint."""
        saved = in_folder(self.folder)
        step = step_of(saved[0]) if saved else 0
        return self.args.iterations if step is None else step

    def result(self) -> dict[str, Any] | None:
        """The content of `evaluation`; None if there is none yet. Raises Failure if it is damaged."""
        return _read(self.evaluation, ("loss", "perplexity", "perplexity_interval_95", "batch_losses"))

    def sweep_result(self) -> dict[str, Any] | None:
        """The content of `sweep`; None if there is none yet. Raises Failure if it is damaged."""
        return _read(self.sweep, ("about", "points"))

    def summary(self) -> dict[str, Any] | None:
        """The summary.json that main.py writes at the end."""
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
        """The result of run_lm_eval.py, if it was called."""
        return _read(self.folder / "lm_eval_ckpt.json", ("results",))

    @property
    def as_published(self) -> bool:
        """Whether its results are comparable with the paper's: same experiment, size and corpus."""
        published = config.parse_args(["--experiment", self.experiments[0], "--seed", str(self.seed)])
        ours, theirs = ((a.dataset, a.iterations, config.identity(a)) for a in (self.args, published))
        return ours == theirs


def _read(path: Path | None, needed: Sequence[str]) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        content = read_json(path)
        missing = [name for name in needed if name not in content]
        if missing:
            raise ValueError(f"there is no {missing[0]} in it")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise Failure(f"{path} is damaged ({error}); delete it, and run again") from error
    return content


def results_by_experiment(runs: Iterable[Run]) -> dict[str, dict[int, dict[str, Any]]]:
    """Results of eval.py for trained runs, by experiment and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        result = run.result() if run.trained else None
        for name in run.experiments:
            found.setdefault(name, {})
            if result is not None:
                found[name][run.seed] = result
    return found


def choose_experiments(patterns: Sequence[str]) -> list[str]:
    """Names of experiments that are trained and begin with one of the patterns; all if there is none.

    Raises UsageError for a pattern (`table1`, `table1/but`) that matches none.
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
            raise UsageError(unknown(f"there is no experiment {pattern}", pattern, [*_tables(names), *names]))
        chosen += found
    return list(dict.fromkeys(chosen))


def _tables(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in names))


def make_plan(
    experiments: Sequence[str], scale: str, seeds: Sequence[int], flags: Sequence[str]
) -> list[Run]:
    """The runs of these experiments, each once, seed by seed, so that early results cover all experiments.

    Args:
        scale: one of config.scales.SCALES.
        flags: further flags of main.py, for all runs.

    Raises:
        UsageError: main.py would refuse the flags, or they would put two different runs into one folder.
    """
    for word in flags:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in PLANNED:
            raise UsageError(f"--{name} after -- : experiments, --seeds and --scale decide that")
    runs: dict[Path, Run] = {}
    for seed in dict.fromkeys(seeds):
        for name in experiments:
            words = ["--experiment", name, "--scale", scale, "--seed", str(seed), *flags]
            args = config.parse_args(words)
            folder = config.experiment_dir(args)
            run = runs.setdefault(folder, Run(seed, args, words, folder))
            if run.args.iterations != args.iterations:
                raise UsageError(
                    f"{name} and {run.experiments[0]} would be one run, of {args.iterations:,} and "
                    f"{run.args.iterations:,} iterations; train them separately, in two "
                    "--results_base_folder"
                )
            run.experiments.append(name)
    return list(runs.values())

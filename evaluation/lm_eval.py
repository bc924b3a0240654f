"""Downstream tasks: `python -m evaluation.lm_eval --checkpoint <run> --tasks hellaswag,piqa,arc_easy`.

The tasks, their prompts and their metrics are those of lm-evaluation-harness (Gao et al. 2021), which
requirements-lm-eval.txt installs. The paper's Table 3 has MMLU, ARC, HellaSwag and PIQA without examples.

This module is a script: nothing imports it, and so it may import what stands above this package. The model
that the harness talks to, `evaluation.harness`, does not.
"""

import argparse
import difflib
import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from errors import Failure, UsageError, run_script

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from evaluation.restore import Restored
    from evaluation.routing import Route


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.prog = "-m evaluation.lm_eval"
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint file, a run's folder, or an exported model")
    add(
        "--tasks",
        required=True,
        help="names of the harness' tasks or groups of them, with commas between; * stands for any letters",
    )
    add(
        "--budget",
        type=float,
        nargs="+",
        help="adm, adaptive_but: a fraction of full compute, for which thresholds are looked up or found on "
        "training text; or R - 1 thresholds. Default: full depth, unless --eval_length_factor or "
        "--routing_threshold say otherwise",
    )
    add("--limit", type=int, help="the first so many questions of each task; default: all")
    add("--num_fewshot", type=int, help="examples before each question; default: as the task says, else 0")
    add("--include_path", help="a folder with tasks of your own (.yaml)")
    add("--output_dir", type=Path, help="where the results go; default: beside the checkpoint")


def check(own: Namespace, given: dict[str, Any]) -> None:
    """Refuse values that mean nothing."""
    if own.limit is not None and own.limit < 1:
        raise UsageError(f"--limit {own.limit} must be at least 1")
    if own.num_fewshot is not None and own.num_fewshot < 0:
        raise UsageError(f"--num_fewshot {own.num_fewshot} must be at least 0")
    if own.include_path is not None and not Path(own.include_path).is_dir():
        raise UsageError(f"--include_path {own.include_path}: there is no such folder")
    if given.get("routing") == "topk":
        raise UsageError(
            "--routing topk: whether a token is among the best depends on those behind it, so there are no "
            "likelihoods of answers under it; leave it away, for thresholds"
        )


def require_harness() -> None:
    """Raises UsageError where the harness cannot be imported."""
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"lm-evaluation-harness cannot be imported ({error}); it is not among the requirements: "
            "pip install -r requirements-lm-eval.txt"
        ) from error


def load_tasks(wanted: str, include_path: str | None) -> "tuple[TaskManager, list[Any]]":
    """The harness' list of tasks (made in seconds, once), and those wanted, with their data.

    Raises UsageError for unknown names, and Failure where a task cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    found = []
    for pattern in filter(None, map(str.strip, wanted.split(","))):
        names = manager.match_tasks([pattern])
        if not names:
            near = difflib.get_close_matches(pattern, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"--tasks {pattern} is unknown; {hint}`lm_eval ls tasks` lists those there are")
        for name in names:
            try:
                loaded = manager.load([name])
            except Exception as error:  # files, the hub, a task's own code: whatever the loading came to
                raise Failure(
                    f"the task {name} cannot be loaded ({type(error).__name__}: {_first_line(error)}); data "
                    "come from the Hugging Face hub: for a node without network, run this once on one that "
                    "has it, with HF_HOME set to a folder that both see"
                ) from error
            members = {member for group in loaded["group_map"].values() for member in group}
            both = {**loaded.get("groups", {}), **loaded["tasks"]}
            found += [task for name, task in both.items() if name not in members]
    if not found:
        raise UsageError("--tasks names no task")
    try:
        every = manager.load(found)["tasks"]
    except ValueError as error:  # one task in two of the groups
        raise UsageError(f"--tasks {wanted}: {_first_line(error)}") from error
    for name, task in every.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UsageError(f"the task {name} runs code that the model writes, or shows images: not here")
    return manager, found


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def find_route(run: "Restored", budget: list[float] | None) -> "Route":
    """Thresholds for the budget, else those of the flags."""
    from evaluation.routing import RouteFinder

    finder = RouteFinder(run)
    return finder.from_flags() if budget is None else finder.from_budget(budget)


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    check(own, given)
    require_harness()
    import lm_eval
    from lm_eval.utils import handle_non_serializable, make_table

    from evaluation.harness import Harness
    from evaluation.restore import restore
    from files import write_json

    # Likelihoods are causal or they are none: see Harness.
    run = restore(Path(own.checkpoint), {**given, "routing": "threshold"})
    manager, tasks = load_tasks(own.tasks, own.include_path)
    print(run.describe())
    route = find_route(run, own.budget)
    if route.about:
        print(route)
    harness = Harness(
        run.model,
        run.make_tokenizer(),
        run.precision,
        batch_size=run.args.batch_size,
        max_length=run.sequence_length,
        routing=route.settings,
        seed=run.args.seed,
    )
    results = lm_eval.simple_evaluate(
        harness,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=own.num_fewshot,
        limit=own.limit,
        log_samples=False,
    )
    folder = run.path.parent if own.output_dir is None else own.output_dir
    path = folder / f"lm_eval_{run.path.stem}.json"
    kept = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
    content = {
        "checkpoint": str(run.path),
        "step": run.step,
        "model": run.args.model,
        "sequence_length": run.sequence_length,
        "batch_size": run.args.batch_size,
        "arithmetic": run.precision.reason,
        **route.about,
        "average_passes": harness.average_passes,
        "limit": own.limit,
        "lm_eval": lm_eval.__version__,
        "notes": harness.notes,
        **{name: results[name] for name in kept if name in results},
    }
    write_json(path, json.loads(json.dumps(content, default=handle_non_serializable)))
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    for note, count in harness.notes.items():
        print(f"note: {count} {note}")
    print(f"{harness.average_passes:.2f} of {run.model.config.repeats} passes a token; written: {path}")


if __name__ == "__main__":
    run_script(main)

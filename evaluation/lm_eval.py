"""Downstream tasks of lm-evaluation-harness: which ones are asked for, their results, and where they go.

The tasks, their prompts and their metrics are the harness's (Gao et al. 2021), an optional requirement
(requirements-lm-eval.txt). The paper's Table 3 has MMLU, ARC, HellaSwag and PIQA, zero-shot.
`python -m evaluation.lm_eval` is an alias of `python run_lm_eval.py`.
"""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import Failure, UsageError
from files import read_json, write_json

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from evaluation.harness import Harness
    from evaluation.restore import Restored
    from evaluation.routing import Route

# Entries of the harness's results that the .json repeats.
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
OF_TASKS = ("average_passes", "notes")  # of the tasks of one call


def require_harness() -> None:
    """Raises UsageError if the harness cannot be imported."""
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"lm-evaluation-harness cannot be imported ({error}); it is not among the requirements: "
            "pip install -r requirements-lm-eval.txt"
        ) from error


def load_tasks(wanted: str, include_path: str | None) -> "tuple[TaskManager, list[Any]]":
    """Load tasks and groups of tasks, with their data.

    Args:
        wanted: names, separated by commas; * stands for any letters.
        include_path: a folder with further tasks.

    Returns:
        The harness's task manager, whose construction takes seconds, and the tasks.

    Raises:
        UsageError: a name is unknown, a task is asked for twice, or a task runs code or shows images.
        Failure: a task cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    found = []
    for pattern in filter(None, map(str.strip, wanted.split(","))):
        names = manager.match_tasks([pattern])
        if not names:
            near = difflib.get_close_matches(pattern, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"--tasks {pattern} is unknown; {hint}`lm_eval ls tasks` lists all names")
        for name in names:
            loaded = _load_task(manager, name)
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


def _load_task(manager: "TaskManager", name: str) -> dict[str, Any]:
    try:
        return manager.load([name])
    except Exception as error:  # files, the hub, a task's own code: loading can fail in any way
        raise Failure(
            f"the task {name} cannot be loaded ({type(error).__name__}: {_first_line(error)}); data "
            "come from the Hugging Face hub: for a node without network, run this once on one that "
            "has it, with HF_HOME set to a folder that both see"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def write_results(
    path: Path,
    results: dict[str, Any],
    run: "Restored",
    route: "Route",
    harness: "Harness",
    limit: int | None,
) -> None:
    """Write lm_eval_<checkpoint>.json.

    Results of other tasks in the file stay, if they are of the same model and settings.

    Args:
        results: what `lm_eval.simple_evaluate` returned.
        limit: questions of each task; None: all.
    """
    import lm_eval
    from lm_eval.utils import handle_non_serializable

    content = {
        "checkpoint": str(run.path),
        "step": run.step,
        "model": run.args.model,
        "sequence_length": run.sequence_length,
        "batch_size": run.args.batch_size,
        "arithmetic": run.precision.reason,
        **route.about,
        "average_passes": harness.average_passes,
        "limit": limit,
        "lm_eval": lm_eval.__version__,
        "notes": harness.notes,
        **{name: results[name] for name in KEPT if name in results},
    }
    new = json.loads(json.dumps(content, default=handle_non_serializable))
    old = _results_of(path, new)
    write_json(path, new | {name: old[name] | new.get(name, {}) for name in KEPT if name in old})


def _results_of(path: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The content of an earlier file of the same model and settings; empty without one."""
    try:
        found = read_json(path)
        same = all(found.get(name) == like[name] for name in like if name not in (*KEPT, *OF_TASKS))
        return found if same and all(isinstance(found[name], dict) for name in KEPT if name in found) else {}
    except (OSError, ValueError, AttributeError):
        return {}


if __name__ == "__main__":
    import runpy

    runpy.run_module("run_lm_eval", run_name="__main__", alter_sys=True)

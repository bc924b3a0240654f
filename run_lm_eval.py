"""Downstream tasks: `python run_lm_eval.py --checkpoint <run> --tasks hellaswag,piqa,arc_easy`.

The tasks are those of lm-evaluation-harness: pip install -r requirements-lm-eval.txt.
"""

import argparse
from pathlib import Path
from typing import Any

import config
from errors import UsageError, run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.prog = "run_lm_eval.py"
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint file, a run's folder, or an exported model")
    add(
        "--tasks",
        required=True,
        help="names of the harness's tasks or groups of tasks, separated by commas; * stands for any letters",
    )
    add(
        "--budget",
        type=float,
        nargs="+",
        help="adm, adaptive_but: a fraction of full compute, for which thresholds are looked up or found on "
        "training text; or R - 1 thresholds. Default: full depth, unless --eval_length_factor or "
        "--routing_threshold say otherwise",
    )
    add("--limit", type=int, help="only the first N questions of each task; default: all")
    add("--num_fewshot", type=int, help="examples before each question; default: as the task says, else 0")
    add("--include_path", help="a folder with tasks of your own (.yaml)")
    add("--output_dir", type=Path, help="folder of the results; default: next to the checkpoint")


def check(own: argparse.Namespace, given: dict[str, Any]) -> None:
    """Raises UsageError for values without meaning."""
    if own.limit is not None and own.limit < 1:
        raise UsageError(f"--limit {own.limit} must be at least 1")
    if own.num_fewshot is not None and own.num_fewshot < 0:
        raise UsageError(f"--num_fewshot {own.num_fewshot} must be at least 0")
    if own.include_path is not None and not Path(own.include_path).is_dir():
        raise UsageError(f"--include_path {own.include_path}: there is no such folder")
    if given.get("routing") == "topk":
        raise UsageError(
            "--routing topk: whether a token is among the best depends on later tokens, so answers have no "
            "likelihoods under it; leave it out, for thresholds"
        )


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    check(own, given)
    from evaluation.lm_eval import load_tasks, require_harness, write_results

    require_harness()
    import lm_eval
    from lm_eval.utils import make_table

    from evaluation.harness import Harness
    from evaluation.reports import check_place, result_path
    from evaluation.restore import restore
    from evaluation.routing import RouteFinder

    # Likelihoods need causal routing: see Harness.
    run = restore(Path(own.checkpoint), {**given, "routing": "threshold"})
    manager, tasks = load_tasks(own.tasks, own.include_path)
    run.replaced.pop("routing", None)  # as every time
    path = result_path(
        "lm_eval", run, own.output_dir,
        budget=own.budget, limit=own.limit, num_fewshot=own.num_fewshot,
    )  # fmt: skip
    kept = check_place(path, own.output_dir, printed=True)
    print(run.describe())
    route = RouteFinder(run).for_generation(own.budget)
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
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    for note, count in harness.notes.items():
        print(f"note: {count} {note}")
    print(f"{harness.average_passes:.2f} of {run.model.config.repeats} passes per token", flush=True)
    if kept:
        write_results(path, results, run, route, harness, own.limit)
        print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)

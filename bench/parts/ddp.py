"""Tokens per second of main.py, loop, loader and all, in one process and in two that share the batch.

On a CPU the processes talk through gloo and share its cores: each computes with its part of them.
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from bench.plan import Case, Plan, Row
from bench.processes import run
from bench.rows import row
from bench.timing import spread

LIMIT_S = 3600.0  # of one run, which takes minutes: only what hangs takes so long


def tokens_per_second(model: str, processes: int, plan: Plan, data_dir: str) -> float:
    """The median over the logged intervals of a short run, the first of them left out.

    data_dir: of the corpus, which the first run prepares.
    """
    size = plan.main_size
    # One's batch is a multiple of both numbers of processes, and the text is in bytes.
    sizes = {**size.flags, "vocab_size": 320, "batch_size": size.batch, "acc_steps": 2}
    iterations, every = plan.pick((40, 10), (12, 4), (4, 2))
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            **sizes, "model": model, "dataset": "pydoc", "data_dir": data_dir,
            "results_base_folder": f"{folder}/exps", "iterations": iterations,
            "eval_freq": iterations, "log_freq": every, "device": plan.device,
            "dtype": plan.run_dtype, "eval_seq_prefix": "none", "depth_embedding": "linear_learned",
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        cores = plan.threads or len(os.sched_getaffinity(0))
        environment = {"OMP_NUM_THREADS": str(max(1, cores // processes))}
        run([*start, "main.py", *words], LIMIT_S, environment)
        (path,) = Path(folder, "exps").rglob("metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line["step"]]
    return spread(rates[1:] or rates).median


def measure(model: str, plan: Plan) -> list[Row]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as data_dir:
        for _ in range(plan.pick(3, 1, 1)):
            for processes, found in rates.items():
                found.append(tokens_per_second(model, processes, plan, data_dir))
    where = f"{model}, {plan.main_size_name}, {plan.run_dtype}"
    return [
        row("ddp", f"{where}, {processes} process{'es' * (processes > 1)}", "tokens/s", spread(found),
            over_one_process=spread([n / m for n, m in zip(found, rates[1], strict=True)]).median)
        for processes, found in rates.items()
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    if plan.cuda:
        import torch

        if torch.cuda.device_count() < 2:  # two processes need a GPU each
            return []
    models = plan.chosen(("ln_cotformer",)) or plan.models[:1]
    models = models if plan.effort == "full" else models[-1:]
    return [Case(model, partial(measure, model, plan)) for model in models]

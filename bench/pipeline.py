"""The parts that time what surrounds the models: `checkpoint` and `tokeniser`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from bench.plan import Case, Plan, Result
from bench.processes import LIMIT_S
from bench.results import failed, rate, ratio, result, spread
from bench.works import in_turn
from distributed import choose_device
from errors import Failure


def time_saves(megabytes: int, repeats: int, device_name: str) -> list[list[float]]:
    """Seconds of each round that training waits: for a plain save, for Saver's, and for its thread to end."""
    from optim import checkpoint_file
    from optim.saver import Saver

    device = choose_device(device_name)
    rows = max(1, megabytes * 1_000_000 // (4 * 1024 * 100))
    weights = {f"layer{i}": torch.randn(rows, 1024, device=device) for i in range(100)}
    content = {"step": 1, "model": weights, "tied": {}, "optimizer": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saver = Saver(
            folder, sharded=False, group=None, staging=None, keep_last=None, keep_every=None,
            on_cuda=device.type == "cuda",
        )  # fmt: skip
        plain = partial(checkpoint_file.write, folder / "plain.pt", content)
        works = [plain, partial(saver.save, content, 1), partial(saver.wait, must=True)]
        seconds = in_turn(works, repeats)
        saver.close()
    return seconds


def measure_checkpoint(megabytes: int, plan: Plan) -> list[Result]:
    (plain, waits, writing), memory = plan.isolated(time_saves, megabytes, plan.repeats, plan.device)
    name, seconds = f"wait for a save of {megabytes} MB", spread(writing).median
    return [
        result("checkpoint", name, "s", spread(waits), ratio(waits, plain), memory, written_after_s=seconds)
    ]


def checkpoint(plan: Plan) -> list[Case]:
    megabytes = plan.pick(1000, 100, 1)
    return [Case(f"{megabytes} MB", partial(measure_checkpoint, megabytes, plan))]


def time_tokeniser(
    workers: int, megabytes: float, repeats: int, tokenizer: str = "gpt2"
) -> tuple[list[list[float]], float]:
    """Seconds of the command and of tiktoken alone, on Python's documentation, repeated; MB of text."""
    import tiktoken

    from data import pydoc

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    found, documents, size = cycle(list(pydoc.documents())), [], 0
    while size < megabytes * 1e6:
        documents.append(next(found))
        size += len(documents[-1].encode())
    with tempfile.TemporaryDirectory() as name:
        text, data_dir = Path(name, "text.jsonl"), Path(name, "data")
        text.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
        command = [sys.executable, "-m", "data.prepare", "--dataset", f"files:{text}"]
        command += ["--tokenizer", tokenizer, "--data_dir", str(data_dir), "--workers", str(workers)]

        def prepare() -> None:
            shutil.rmtree(data_dir, ignore_errors=True)
            done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
            if done.returncode:
                raise Failure(f"python {' '.join(command[1:5])}: exit code {done.returncode}")

        encode = tiktoken.get_encoding("gpt2").encode_ordinary_batch
        seconds = in_turn([prepare, partial(encode, documents, num_threads=workers)], repeats, 0)
    return seconds, size / 1e6


def measure_tokeniser(workers: int, megabytes: float, plan: Plan) -> list[Result]:
    """Preparing a corpus, start and end included, against tiktoken alone, on as many cores as workers.

    Needs GPT-2's vocabulary.
    """
    from data.tokenizers import make_tokenizer

    name = f"{workers} worker{'s' * (workers > 1)}, {megabytes:g} MB"
    try:
        make_tokenizer("gpt2").encode("warm")
    except Failure as error:
        return [failed("tokeniser", name, str(error))]
    arguments = (workers, megabytes, plan.pick(3, 1, 1))
    (ours, theirs), size = plan.isolated(time_tokeniser, *arguments).result
    details = {
        "tiktoken_mb_per_s": rate(size, theirs).median,
        "tiktoken_over_ours": ratio(ours, theirs).median,
    }
    return [result("tokeniser", name, "MB/s", rate(size, ours), **details)]


def tokeniser(plan: Plan) -> list[Case]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else 0
    return [
        Case(f"{workers} workers, {megabytes:g} MB", partial(measure_tokeniser, workers, megabytes, plan))
        for workers in plan.pick((1, 2), (2,), (1,))
        for megabytes in plan.pick((50.0, 250.0), (5.0,), (0.2,))
        if workers <= cores
    ]

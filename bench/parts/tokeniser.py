"""Preparing a corpus: OpenWebText2's command against tiktoken alone, and the memory of all its processes.

An archive in OpenWebText2's format is made of real text (Python's documentation, repeated). Both sides are
kept to as many cores as there are workers; tiktoken's time is without the start of its processes, ours with
it. Needs GPT-2's vocabulary (TIKTOKEN_CACHE_DIR, or network).
"""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import zstandard

from bench.memory import proportional_mib
from bench.plan import Case, Plan, Row
from bench.processes import family, started, until
from bench.rows import missing, row
from bench.timing import rate, ratio
from data import pydoc
from data.openwebtext2 import ARCHIVE, NAME
from data.tokenizers import make_tokenizer
from errors import Failure

MEMBER_BYTES = 10_000_000  # of text in each file of the archive
LIMIT_S = 3600.0  # far above what it takes: only what hangs takes so long


def make_archive(data_dir: Path, megabytes: float) -> list[str]:
    """Write the archive; returns its documents."""
    found, documents, size = list(pydoc.documents()), [], 0
    folder = data_dir / NAME
    folder.mkdir(parents=True)
    with tarfile.open(folder / ARCHIVE, "w") as tar:
        number, lines, waiting = 0, [], 0
        while size < megabytes * 1e6:
            text = found[len(documents) % len(found)]
            documents.append(text)
            lines.append(json.dumps({"text": text, "meta": {}}) + "\n")
            size += len(text.encode())
            waiting += len(lines[-1])
            if waiting > MEMBER_BYTES or size >= megabytes * 1e6:
                content = zstandard.ZstdCompressor().compress("".join(lines).encode())
                info = tarfile.TarInfo(f"{number:04d}.jsonl.zst")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                number, lines, waiting = number + 1, [], 0
    return documents


def tokenise(data_dir: Path, workers: int, cores: set[int]) -> tuple[float, float]:
    """Run the command -> seconds, and the most memory of all its processes (MiB, shared pages once)."""
    for path in (data_dir / NAME).glob("*"):
        if path.name != ARCHIVE:
            path.unlink()
    command = [sys.executable, "-m", "data.openwebtext2", "tokenize", "--data_dir", str(data_dir)]
    command += ["--workers", str(workers)]
    on_cores, peak, begun = partial(os.sched_setaffinity, 0, cores), 0.0, time.perf_counter()
    with started(command, stdout=subprocess.DEVNULL, preexec_fn=on_cores) as process:
        for _ in until(lambda: process.poll() is not None, LIMIT_S):
            peak = max(peak, sum(map(proportional_mib, family(process.pid))))
    if process.returncode:
        raise Failure(f"python -m data.openwebtext2 tokenize: exit code {process.returncode}")
    return time.perf_counter() - begun, peak


def encode_all(documents: list[str], cores: set[int], pipe: Connection) -> None:
    os.sched_setaffinity(0, cores)
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    encoding.encode_ordinary("warm")
    pipe.send("ready")
    pipe.recv()
    for text in documents:
        encoding.encode_ordinary(text)
    pipe.send("done")


def tiktoken_alone(documents: list[str], workers: int, cores: set[int]) -> float:
    """Seconds of encode_ordinary over documents that lie in memory, parted among processes that have started.

    Raises Failure where one of them ends early or takes too long.
    """
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for number in range(workers):
            ours, theirs = context.Pipe()
            arguments = (documents[number::workers], cores, theirs)
            processes.append(context.Process(target=encode_all, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            _hear(pipe)
        begun = time.perf_counter()
        for pipe in pipes:
            pipe.send("start")
        for pipe in pipes:
            _hear(pipe)
        return time.perf_counter() - begun
    finally:
        for process in processes:
            process.kill()
            process.join()


def _hear(pipe: Connection) -> None:
    try:
        if not pipe.poll(LIMIT_S):
            raise Failure(f"tiktoken alone took more than {LIMIT_S:g} s")
        pipe.recv()
    except EOFError:
        raise Failure("a process of tiktoken alone ended early") from None


def measure(workers: int, megabytes: float, plan: Plan) -> list[Row]:
    name = f"owt2, {workers} worker{'s' * (workers > 1)}, {megabytes:g} MB"
    try:
        make_tokenizer("gpt2").encode("warm")
    except Failure as error:
        return [missing("tokeniser", name, str(error))]
    cores = set(sorted(os.sched_getaffinity(0))[:workers])
    ours, peaks, theirs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        documents = make_archive(Path(folder), megabytes)
        size = sum(len(text.encode()) for text in documents) / 1e6
        for _ in range(plan.pick(3, 1, 1)):  # in turn
            seconds, peak = tokenise(Path(folder), workers, cores)
            ours.append(seconds)
            peaks.append(peak)
            theirs.append(tiktoken_alone(documents, workers, cores))
    return [
        row("tokeniser", name, "MB/s", rate(size, ours), memory_mib=max(peaks),
            tiktoken_mb_per_s=rate(size, theirs).median, tiktoken_over_ours=ratio(ours, theirs).median)
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    found = []
    if not hasattr(os, "sched_setaffinity"):  # cores cannot be shared out
        return found
    for workers in plan.pick((1, 2), (2,), (1,)):
        for megabytes in plan.pick((50.0, 250.0), (5.0,), (0.2,)):
            if workers <= len(os.sched_getaffinity(0)):
                name = f"{workers} workers, {megabytes:g} MB"
                found.append(Case(name, partial(measure, workers, megabytes, plan)))
    return found

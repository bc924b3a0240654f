"""Preparing a corpus: OpenWebText2's command against tiktoken alone, and the memory of all its processes.

An archive in OpenWebText2's format is made of real text (Python's documentation, repeated). Both sides are
kept to as many cores as there are workers. Needs GPT-2's vocabulary (TIKTOKEN_CACHE_DIR, or network).
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
from pathlib import Path

import zstandard

from bench.plan import Case, Plan, Row
from bench.rows import missing, row
from bench.timing import in_turn, rate, ratio, spread
from data import pydoc
from data.openwebtext2 import ARCHIVE, NAME
from data.tokenizers import make_tokenizer
from errors import Failure

ROOT = Path(__file__).parents[2]
MEMBER_BYTES = 10_000_000  # of text in each file of the archive


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


def tokenise(data_dir: Path, workers: int, cores: set[int]) -> dict[str, float]:
    """Run the command; seconds, and the most memory of all its processes (MB, shared pages once)."""
    for path in (data_dir / NAME).glob("*"):
        if path.name != ARCHIVE:
            path.unlink()
    command = [sys.executable, "-m", "data.openwebtext2", "tokenize", "--data_dir", str(data_dir)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--workers", str(workers)], cwd=ROOT, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(memory, family(process.pid))))
        time.sleep(0.1)
    if process.returncode:
        raise Failure("the command failed")
    return {"seconds": time.perf_counter() - started, "peak_mb": peak}


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = [pid]
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and int((path / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(path.name))
        except (OSError, IndexError):
            continue
    return children


def memory(pid: int) -> float:
    """Proportional set size in MB; 0 where the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def encode_all(documents: list[str], start, done) -> None:
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    encoding.encode_ordinary("warm")
    start.wait()
    for text in documents:
        encoding.encode_ordinary(text)
    done.wait()


def tiktoken_alone(documents: list[str], workers: int, cores: set[int]) -> float:
    """Seconds of encode_ordinary over documents that lie in memory, parted among processes."""
    context = multiprocessing.get_context("spawn")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    start, done = context.Barrier(workers + 1), context.Barrier(workers + 1)
    processes = [
        context.Process(target=encode_all, args=(documents[number::workers], start, done))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    start.wait()
    started = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    os.sched_setaffinity(0, before)
    return seconds


def measure(workers: int, megabytes: float, plan: Plan) -> list[Row]:
    name = f"owt2, {workers} worker{'s' * (workers > 1)}, {megabytes:g} MB"
    try:
        make_tokenizer("gpt2").encode("warm")
    except Failure as error:
        return [missing("tokeniser", name, str(error))]
    cores = set(sorted(os.sched_getaffinity(0))[:workers])
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        documents = make_archive(Path(folder), megabytes)
        size = sum(len(text.encode()) for text in documents) / 1e6
        works = [
            lambda: peaks.append(tokenise(Path(folder), workers, cores)["peak_mb"]),
            lambda: tiktoken_alone(documents, workers, cores),
        ]
        ours, theirs = in_turn(works, plan.pick(3, 1, 1), warm_up=0)
    return [
        row("tokeniser", name, "MB/s", rate(size, ours), memory_mib=spread(peaks).high / 1.048576,
            tiktoken_mb_per_s=rate(size, theirs).median, tiktoken_over_ours=ratio(ours, theirs).median)
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    found = []
    if not hasattr(os, "sched_setaffinity"):  # cores cannot be shared out
        return found
    for workers in plan.pick((1, 2), (2,), (1,)):
        for megabytes in plan.pick((50.0, 500.0), (5.0,), (0.2,)):
            if workers <= len(os.sched_getaffinity(0)):
                name = f"{workers} workers, {megabytes:g} MB"
                found.append(Case(name, partial(measure, workers, megabytes, plan)))
    return found

"""What preparing and loading a corpus costs: `python bench/data.py [--megabytes 50 500] [--json FILE]`.

An archive in OpenWebText2's format is made of real text (Python's documentation, repeated), then
1. tokenised, against tiktoken alone on the same documents, both kept to as many cores as there are workers;
2. tokenised at each size, and the memory of all its processes added up;
3. batches are drawn from its token files, against a DataLoader that collates item by item.
Needs GPT-2's vocabulary (TIKTOKEN_CACHE_DIR).
"""

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import zstandard
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import compare
from data import open_corpus, pydoc
from data.batches import Batches
from data.openwebtext2 import ARCHIVE, NAME
from files import write_json

ROOT = Path(__file__).parents[1]
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
        raise SystemExit("the command failed")
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


class Items(Dataset):
    """One window an item, as the released code loads them."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int):
        start = index * self.length
        read = self.tokens[start : start + self.length + 1].astype(np.int64)
        return torch.from_numpy(read[:-1]), torch.from_numpy(read[1:])


def loader(data_dir: Path, batch: int, length: int, count: int) -> dict[str, float]:
    """Batches per second of both."""
    corpus = open_corpus(NAME, data_dir=data_dir, vocab_size=50304, sequence_length=length)
    ours = Batches(corpus.windows("train", length, 50304), batch, 1, seed=0)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # 4, as is usual, on any machine
    theirs = DataLoader(
        Items(corpus.arrays("train")[0], length),
        batch_size=batch,
        shuffle=True,
        num_workers=4,
        drop_last=True,
    )

    def take_ours() -> None:
        for step in range(count):
            ours.get(step, 0)

    def take_theirs() -> None:
        for number, _ in enumerate(theirs, start=1):
            if number == count:
                break

    seconds = compare([take_ours, take_theirs], repeats=3)
    return {"ours": count / seconds[0], "dataloader": count / seconds[1]}


def speed(data_dir: Path, documents: list[str], workers: int, cores: set[int], repeats: int) -> dict:
    """MB/s of text of the command, its start and end included, and of tiktoken alone."""
    works = [
        lambda: tokenise(data_dir, workers, cores),
        lambda: tiktoken_alone(documents, workers, cores),
    ]
    size = sum(len(text.encode()) for text in documents) / 1e6
    ours, theirs = (size / seconds for seconds in compare(works, repeats, warm_up=False))
    print(
        f"{workers} worker(s) on as many cores, {size:.0f} MB: {ours:.1f} MB/s, tiktoken alone {theirs:.1f} "
        f"MB/s, ratio {ours / theirs:.2f}",
        flush=True,
    )
    return {"workers": workers, "megabytes": size, "ours": ours, "tiktoken": theirs, "ratio": ours / theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[50, 500], help="of text")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    result: dict = {"cores": len(cores), "memory": []}
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in args.megabytes:
            data_dir = Path(folder) / f"{megabytes:g}"
            documents = make_archive(data_dir, megabytes)
            found = tokenise(data_dir, 2, set(cores))
            result["memory"].append({"megabytes": megabytes, **found})
            print(f"{megabytes:g} MB, 2 workers: {found['peak_mb']:.0f} MB of memory at most", flush=True)
        result["speed"] = [  # of the last, largest one
            speed(data_dir, documents, workers, set(cores[:workers]), args.repeats) for workers in (1, 2)
        ]
        batches = result["loader"] = loader(data_dir, 64, 256, 300)
        ours, theirs = batches["ours"], batches["dataloader"]
        print(
            f"batches of 64 x 256: {ours:,.0f}/s, a DataLoader of 4 workers {theirs:,.0f}/s, "
            f"ratio {ours / theirs:.1f}"
        )
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()

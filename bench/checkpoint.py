"""What training waits for at a checkpoint: `python bench/checkpoint.py [--megabytes 1000] [--json FILE]`.

A plain save (write, force to disk, rename) against Saver, which copies to host memory and writes in a thread;
and how much slower matrix products are while it writes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from files import write_json
from optim import checkpoint_file
from optim.saver import Saver


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def products(matrix: torch.Tensor, until) -> float:
    """Matrix products a second, until `until()`."""
    count, started = 0, time.perf_counter()
    while not until():
        matrix @ matrix
        count += 1
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="of the checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="of the disk to write to; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = args.megabytes * 1_000_000 // (4 * 1024 * 100)
    weights = {f"layer{i}": torch.randn(rows, 1024, device=device) for i in range(100)}
    content = {"step": 1, "model": weights, "tied": {}, "optimizer": {}}
    matrix = torch.randn(256, 256, device=device)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        saver = Saver(
            folder, sharded=False, group=None, staging=None, keep_last=None, keep_every=None,
            on_cuda=device.type == "cuda", say=print,
        )  # fmt: skip
        first = seconds(lambda: saver.save(content, 0))  # its buffers are made
        saver.wait(must=True)
        plain, stalls, rates = [], [], []
        end = time.perf_counter() + 2.0
        idle = products(matrix, lambda: time.perf_counter() > end)
        for _ in range(args.repeats):  # in turns
            plain.append(seconds(lambda: checkpoint_file.write(folder / "plain.pt", content)))
            stalls.append(seconds(lambda: saver.save(content, 1)))
            rates.append(products(matrix, saver._job.done))
            saver.wait(must=True)
        saver.close()
    result = {
        "device": str(device),
        "megabytes": args.megabytes,
        "plain_seconds": statistics.median(plain),
        "stall_seconds": statistics.median(stalls),
        "stall_of_the_first": first,
        "stall_over_plain": statistics.median(stalls) / statistics.median(plain),
        "speed_while_writing": statistics.median(rates) / idle,
    }
    print(
        f"{args.megabytes} MB: a plain save takes {result['plain_seconds']:.2f} s; training waits "
        f"{result['stall_seconds']:.3f} s ({100 * result['stall_over_plain']:.1f} % of it; {first:.2f} s the "
        f"first time), and goes on at {100 * result['speed_while_writing']:.0f} % of its speed meanwhile"
    )
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()

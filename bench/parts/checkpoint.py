"""What training waits for at a checkpoint.

A plain save (write, force to disk, rename) against Saver, which copies to host memory and writes in a thread;
and how fast matrix products are while it writes. Memory is that of all this, the weights in it.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.builds import precision_of, waiter
from bench.isolated import apart
from bench.plan import Case, Plan, Row
from bench.rows import row
from bench.timing import ratio, spread
from distributed import choose_device
from optim import checkpoint_file
from optim.saver import Saver


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def products(matrix: torch.Tensor, until: Callable[[], bool], wait: Callable[[], object]) -> float:
    """Matrix products a second, until `until()`; at least one. wait: until the device has done one."""
    count, started = 0, time.perf_counter()
    while not count or not until():
        matrix @ matrix
        wait()
        count += 1
    return count / (time.perf_counter() - started)


def time_saves(megabytes: int, repeats: int, device_name: str, idle_seconds: float) -> dict:
    """plain, stalls: seconds of each round. rates: products a second while it writes, idle: without."""
    device = choose_device(device_name)
    rows = max(1, megabytes * 1_000_000 // (4 * 1024 * 100))
    weights = {f"layer{i}": torch.randn(rows, 1024, device=device) for i in range(100)}
    content = {"step": 1, "model": weights, "tied": {}, "optimizer": {}}
    wait = waiter(precision_of(device_name, "float32"))
    matrix = torch.randn(256, 256, device=device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saver = Saver(
            folder, sharded=False, group=None, staging=None, keep_last=None, keep_every=None,
            on_cuda=device.type == "cuda", say=print,
        )  # fmt: skip
        first = seconds(lambda: saver.save(content, 0))  # its buffers are made
        saver.wait(must=True)
        plain, stalls, rates = [], [], []
        end = time.perf_counter() + idle_seconds
        idle = products(matrix, lambda: time.perf_counter() > end, wait)
        for _ in range(repeats):  # in turns
            plain.append(seconds(lambda: checkpoint_file.write(folder / "plain.pt", content)))
            stalls.append(seconds(lambda: saver.save(content, 1)))
            rates.append(products(matrix, lambda: not saver.busy(), wait))
            saver.wait(must=True)
        saver.close()
    return {"plain": plain, "stalls": stalls, "rates": rates, "idle": idle, "first": first}


def measure(megabytes: int, plan: Plan) -> list[Row]:
    arguments = (megabytes, min(plan.repeats, 5), plan.device, plan.pick(2.0, 1.0, 0.01))
    measured = apart(time_saves, *arguments, threads=plan.threads)
    found = measured.result
    return [
        row("checkpoint", f"wait for a save of {megabytes} MB", "s", spread(found["stalls"]),
            memory_mib=measured.memory_mib, plain=spread(found["plain"]),
            ratio=ratio(found["stalls"], found["plain"]),
            first_wait_s=found["first"], speed_while_writing=spread(found["rates"]).median / found["idle"])
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    megabytes = plan.pick(1000, 100, 1)
    return [Case(f"{megabytes} MB", partial(measure, megabytes, plan))]

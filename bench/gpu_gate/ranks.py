"""Items about several ranks: DDP and FSDP in a world of one, and over all GPUs; ranks that hang or end."""

import datetime
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from bench.gpu_gate.rows import Row, Skipped, close, row, skipped
from bench.gpu_gate.training import Training, same_weights, size_of
from bench.plan import Plan
from bench.results import ROOT
from distributed import Processes, choose_device
from distributed.parallel import DDP, FSDP, SingleProcess
from optim import checkpoint as checkpoints
from optim.saver import Saver

STEPS = 3
HALF, RANKS = 2e-2, 1e-3  # differences of losses: bfloat16; float32 (TF32) over several ranks
TINY = (
    "--dataset counting --vocab_size 256 --sequence_length 64 --n_layer 2 --n_head 2 --n_embd 32 "
    "--batch_size 4 --eval_freq 100000 --log_freq 1 --eval_seq_prefix none --dtype float32 "
    "--distributed_timeout 0.1 --compile none"
)
STARTED_LINES = 3  # of metrics.jsonl: the ranks train
LIMIT_S, START_S = 60.0, 90.0
# A rank whose sixth step raises.
RAISING = (
    "import runpy, sys, optim.train as train\n"
    "step, count = train.training_step, [0]\n"
    "def raising(*arguments):\n"
    "    count[0] += 1\n"
    "    if count[0] > 5: raise RuntimeError('as asked')\n"
    "    return step(*arguments)\n"
    "train.training_step = raising\n"
    "sys.argv = ['main.py', *sys.argv[1:]]\n"
    "runpy.run_path('main.py', run_name='__main__')\n"
)


def world_of_one(plan: Plan) -> Iterator[Row]:
    """DDP and FSDP over NCCL with one rank train as one process does; FSDP's checkpoint goes to a file, to
    the CPU, and back."""
    device = choose_device(plan.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist.init_process_group(
            "cuda:nccl,cpu:gloo" if plan.cuda else "gloo", rank=0, world_size=1,
            store=dist.FileStore(str(folder / "store"), 1), timeout=datetime.timedelta(seconds=30),
        )  # fmt: skip
        if plan.cuda:
            dist.all_reduce(torch.ones(1, device=device))  # torch finds its links before training does
        try:
            yield from _world_of_one(plan, device, folder)
        finally:
            dist.destroy_process_group()


def _world_of_one(plan: Plan, device: torch.device, folder: Path) -> Iterator[Row]:
    size, processes = size_of(plan), Processes()
    for model in ("ln_cotformer", "adm"):
        alone = Training(model, size, plan.device)
        losses = alone.losses(STEPS)
        ddp = Training(model, size, plan.device, parallel=DDP(processes, device))
        yield close(f"{model}, DDP", ddp.losses(STEPS), losses, HALF)
        sharded = Training(model, size, plan.device, parallel=FSDP(processes, device))
        yield close(f"{model}, FSDP", sharded.losses(STEPS), losses, HALF)
    if importlib.util.find_spec("safetensors") is None:
        yield skipped("FSDP's checkpoint", "safetensors is not installed")
        return
    weights = sharded.weights()
    group = dist.new_group(backend="gloo")
    saver = Saver(
        folder, sharded=True, group=group, staging=None, keep_last=None, keep_every=None, on_cuda=plan.cuda
    )
    saver.save(sharded.checkpoint(), STEPS)
    saver.wait(must=True)
    saver.close()
    path = folder / checkpoints.name_of(STEPS, checkpoints.FOLDER)
    on_cpu = Training("adm", size, "cpu", "float32")
    on_cpu.restore(checkpoints.load(path))
    yield row("FSDP's folder on the CPU", same_weights(weights, on_cpu.weights()))
    file = folder / checkpoints.name_of(STEPS + 1)
    checkpoints.write(file, on_cpu.checkpoint())
    for name, parallel in (
        ("a file in one process", SingleProcess()), ("a file under DDP", DDP(processes, device)),
        ("a file under FSDP", FSDP(processes, device)),
    ):  # fmt: skip
        back = Training("adm", size, plan.device, parallel=parallel)
        back.restore(checkpoints.load(file))
        yield row(name, same_weights(weights, back.weights()))
        yield close(f"{name}, next losses", back.losses(2), _next(file, plan), HALF)


def _next(file: Path, plan: Plan) -> list[float]:
    training = Training("adm", size_of(plan), plan.device)
    training.restore(checkpoints.load(file))
    return training.losses(2)


class Ranks:
    """Processes of main.py, as torchrun starts them, in this process's group: they are killed with it.

    codes: Python code in place of main.py for some ranks.
    """

    def __init__(
        self, plan: Plan, folder: Path, size: int, flags: str, codes: dict[int, str] | None = None
    ) -> None:
        self.folder, self.device = folder, plan.device
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = (
            f"{TINY} --device {plan.device} --results_base_folder {folder} --data_dir {folder}/data {flags}"
        )
        self.processes = []
        for rank in range(size):
            own = (codes or {}).get(rank)
            command = [sys.executable, *(["main.py"] if own is None else ["-c", own]), *flags.split()]
            ranks = {} if size == 1 else {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **ranks}
            with open(folder / f"said.{rank}", "w") as said:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
                    )
                )

    def lines(self) -> list[dict]:
        found = list(self.folder.glob("counting/*/*/metrics.jsonl"))
        text = found[0].read_text() if found else ""
        return [json.loads(one) for one in text[: text.rfind("\n") + 1].splitlines()]

    def wait_until_training(self) -> bool:
        end = time.monotonic() + START_S
        while time.monotonic() < end and all(one.poll() is None for one in self.processes):
            if len(self.lines()) >= STARTED_LINES:
                return True
            time.sleep(0.1)
        return len(self.lines()) >= STARTED_LINES

    def wait(self, ranks: Sequence[int], limit_s: float) -> float | None:
        """Seconds until these ranks have ended; None: they have not within the limit."""
        started = time.monotonic()
        for rank in ranks:
            try:
                self.processes[rank].wait(max(0.1, started + limit_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None
        return time.monotonic() - started

    def said(self) -> str:
        """The errors that they printed, on one line."""
        texts = [path.read_text() for path in sorted(self.folder.glob("said.*"))]
        print("\n".join(text[-3000:] for text in texts), flush=True)
        named = ("error: ", "RuntimeError: ")
        return " | ".join(one for text in texts for one in text.splitlines() if one.startswith(named))

    def kill(self) -> None:
        for one in self.processes:
            one.kill()
            one.wait()


def several(plan: Plan) -> Iterator[Row]:
    """The losses of one rank; then what happens when rank 1 hangs, is killed, or fails, and how fast."""
    count = torch.cuda.device_count() if plan.cuda else 2
    if count < 2:
        raise Skipped("there is one GPU")
    losses = {}
    for name, size, backend in (("one rank", 1, "none"), ("DDP", count, "none"), ("FSDP", count, "fsdp")):
        with tempfile.TemporaryDirectory() as folder:
            flags = f"--iterations 8 --acc_steps {2 * count} --distributed_backend {backend}"
            ranks = Ranks(plan, Path(folder), size, flags)
            try:
                seconds = ranks.wait(range(size), START_S)
                losses[name] = [line["train_loss"] for line in ranks.lines()]
                if seconds is None or len(losses[name]) < 8:
                    yield row(name, False, why=ranks.said() or "it did not end")
                    continue
            finally:
                ranks.kill()
        if name != "one rank" and "one rank" in losses:
            yield close(f"{count} ranks, {name}", losses[name], losses["one rank"], RANKS, seconds=seconds)
    for name in ("hangs", "is killed", "raises"):
        yield _fault(plan, count, name)


def _fault(plan: Plan, count: int, name: str) -> Row:
    """All others end, with one sentence, within the timeout of 6 s and what it takes to end."""
    with tempfile.TemporaryDirectory() as folder:
        codes = {1: RAISING} if name == "raises" else {}
        ranks = Ranks(plan, Path(folder), count, f"--iterations 100000 --acc_steps {count}", codes)
        try:
            if not ranks.wait_until_training():
                return row(f"a rank {name}", False, why=ranks.said() or "the ranks did not begin to train")
            if name == "hangs":
                ranks.processes[1].send_signal(signal.SIGSTOP)
            elif name == "is killed":
                ranks.processes[1].kill()
            others = [rank for rank in range(count) if rank != 1]
            seconds = ranks.wait(others, LIMIT_S)
            said = ranks.said()
            ended = seconds is not None and all(ranks.processes[rank].returncode for rank in others)
            return row(f"a rank {name}", ended and bool(said), seconds=seconds or "did not end", said=said)
        finally:
            ranks.kill()

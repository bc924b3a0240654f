"""Scripts in processes forked from one that has imported torch, which saves each of them three seconds."""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "optim.run", "optim.checkpoint_file", "optim.checkpoint_folder", "data.prepare",
    "torch._dynamo", "torch.distributed.fsdp",
])  # fmt: skip


class Forked:
    """A running `python path.py flags` or `python -m module flags`, with the interface of subprocess.Popen.

    It leads a process group, and its stdout and stderr are one pipe. With `size` above 1 that many ranks
    run the script, and this process waits for them as torchrun does: when one fails, it ends the others.
    """

    def __init__(self, argv: list[str], env: dict[str, str] | None = None, size: int = 1) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        env = {**os.environ, **(env or {})}
        self._process = CONTEXT.Process(target=_main, args=(argv, env, size, writer))
        self._process.start()
        writer.close()
        self.args, self.pid = argv, self._process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """The rest of the output. After `timeout` seconds the process group is killed."""
        late = threading.Timer(timeout or threading.TIMEOUT_MAX, os.killpg, (self.pid, signal.SIGKILL))
        late.start()
        with self.stdout:
            said = self.stdout.read()
        late.cancel()
        self.wait()
        return said, None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _main(argv: list[str], env: dict[str, str], size: int, output: Connection) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.environ.clear()
    os.environ.update(env)
    # As in a new Python of a terminal, also where the tests run in the background or under nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if size == 1 or _is_rank(size):
        if argv[0] == "-m":
            sys.argv = argv[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            sys.path.insert(0, os.path.dirname(argv[0]))
            runpy.run_path(argv[0], run_name="__main__")


def _is_rank(size: int) -> bool:
    """Fork the ranks; True in each. Then wait, serving their store, and exit as they do."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    os.environ.update(
        WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0",
    )  # fmt: skip
    ranks = set()
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            return True
        ranks.add(pid)
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    del store
    sys.exit(int(failed))

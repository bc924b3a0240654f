"""Commands as processes that end in time, and leave none behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from errors import Failure

ROOT = Path(__file__).parents[1]
GRACE_S = 10.0  # that a process has to end its own children


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> str:
    """Run a command at the root of the project -> what it wrote to stdout.

    Raises Failure, with the end of what it wrote to stderr, where it fails or takes longer than limit_s.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, env={**os.environ, **(environment or {})}, **pipes) as process:
        try:
            said, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Failure(f"{_name(command)} took more than {limit_s:g} s") from None
    if process.returncode:
        why = errors.strip()[-400:] or "no word of why"
        raise Failure(f"{_name(command)}: exit code {process.returncode}: {why}")
    return said


@contextmanager
def started(command: Sequence[str], **options) -> Iterator[subprocess.Popen]:
    """A process in a session of its own, of which nothing is left on the way out.

    Ctrl-C reaches us alone, so that it is ended in one way. options: of Popen.
    """
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process)


def end(process: subprocess.Popen) -> None:
    """Ask it to end, then kill what is left: torchrun's workers are in sessions of their own."""
    pids = family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    kill({*pids, *family(process.pid)})
    process.wait()


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends us as Ctrl-C does, so that what is to be left in order is."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def until(done: Callable[[], bool], limit_s: float, step_s: float = 0.1) -> Iterator[None]:
    """Yields every step_s until `done()`. Raises Failure after limit_s."""
    last = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > last:
            raise Failure(f"it took more than {limit_s:g} s")
        yield
        time.sleep(step_s)


def _name(command: Sequence[str]) -> str:
    """Its words without the interpreter and the flags' values: `main.py`, `-m torch.distributed.run`."""
    words = [word for word in command if word.endswith(".py") or word.startswith("--help")]
    return " ".join(words) or " ".join(command[1:3])

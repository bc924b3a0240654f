"""The processes that train together, and what they tell one another beside gradients.

Agreement goes over a gloo group on the CPU, whatever the gradients go over: a small collective among large
ones has hung on NCCL.
"""

import contextlib
import datetime
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from distributed.failure_watch import Alarm
from errors import Failure, UsageError

# What gloo and NCCL say when a process has gone, or is late.
_LOST = ("Connection", "Timed out", "timed out", "Timeout", "timeout", "NCCL", "Broken pipe", "socket")
_FOR_DISKS = datetime.timedelta(hours=6)
_CAUSE = 3.0  # seconds within which the process that failed first has told why


class Processes:
    """This process among all. One alone needs no group, and every method is what it says of one."""

    def __init__(self, on_cuda: bool = False, timeout_minutes: float = 10.0) -> None:
        """Join the processes that torchrun started, if it did. on_cuda: on GPUs, if there are any.

        timeout_minutes: for how long one waits for another before all give up. Raises Failure.
        """
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.is_main = self.rank == 0
        self.alarm: Alarm | None = None
        self._timeout_minutes = timeout_minutes
        self._group = self._patient = self._saving = None
        if self.size == 1:
            return
        timeout = datetime.timedelta(minutes=timeout_minutes)
        backend = "cuda:nccl,cpu:gloo" if on_cuda and torch.cuda.is_available() else "gloo"
        try:
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=timeout))
            self.alarm = Alarm(store, self.rank, self.size)
            dist.init_process_group(
                backend, store=dist.PrefixStore("train", store), rank=self.rank, world_size=self.size,
                timeout=timeout,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise Failure(f"the {self.size} processes do not find one another: {error}") from error
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        # Disks may take longer than networks. Checkpoints are written by a thread, with a group of its own.
        self._patient = dist.new_group(backend="gloo", timeout=_FOR_DISKS)
        self._saving = dist.new_group(backend="gloo", timeout=_FOR_DISKS)

    @property
    def saving_group(self) -> dist.ProcessGroup | None:
        """For the thread that writes checkpoints, and nothing else; None for a process alone."""
        return self._saving

    def any(self, value: int) -> int:
        """The largest number that any process gives. All must ask."""
        if self.size == 1:
            return value
        if self.alarm is not None:
            self.alarm.alive()
        number = torch.tensor([value])
        dist.all_reduce(number, dist.ReduceOp.MAX, self._group)
        return int(number.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over processes of a tensor on the device. All must ask."""
        if self.size > 1:
            dist.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by rank: plain data. All must ask."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self._group)
        return values

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gives: plain data. All must ask."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, self._group)
        return values[0]

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """Around the work. Where it fails in several processes, the first to fail says why, and all end.

        They end at once: a thread may wait in a collective for a process that has gone.
        """
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            code = self._say_once(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        self.close()

    def _say_once(self, error: BaseException) -> int:
        """The exit code, after this process' message, unless another one has had the word."""
        sentence = f"{type(error).__name__}: {error}"
        lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)
        if lost:
            if self.alarm.another_failed(_CAUSE):  # that is why; it has told
                return 1
            who = ", ".join(map(str, self.alarm.silent())) or "unknown"
            reason = str(error).strip().splitlines()[-1]
            minutes = f"{self._timeout_minutes:g} minutes"
            error = Failure(
                f"the processes have lost one another: one was killed, or made no progress for {minutes} "
                f"(--distributed_timeout); last heard of least: rank {who} ({reason})"
            )
        if not self.alarm.sound(sentence):
            return 1
        if isinstance(error, Failure):
            print(f"error: rank {self.rank}: {error}", file=sys.stderr)
            return error.exit_code
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
            return 130
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 1
        print(f"rank {self.rank}:", file=sys.stderr)
        traceback.print_exception(error)
        return 1

    def after_all(self) -> None:
        """Wait until every process is here, which may have had to wait for a disk. All must call."""
        if self.size > 1:
            dist.barrier(self._patient)

    def let_finish(self, busy: Callable[[], bool]) -> None:
        """Should another process fail, this one is not ended while it is busy."""
        if self.alarm is not None:
            self.alarm.busy = busy

    def close(self) -> None:
        """Leave the group; after a failure others may have gone before."""
        if self.alarm is not None:
            self.alarm.close()
            self.alarm = None
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def local_rank() -> int:
    """The place of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def require_single_process() -> None:
    """Raises UsageError under a launcher that started several processes."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise UsageError(
            f"torchrun started {size} processes, but this script works in one: run it with python"
        )

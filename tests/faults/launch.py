"""main.py with a fault in it: FAULT is <kind>:<rank>:<step>, kinds as below.

With WAITS=in C, the other ranks wait for that one as with NCCL: in a call that never returns.

Faults are put in from outside, so that the code which runs is the code that is shipped.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def slowly(function):
    """A slow disk: a process that is killed at random is often killed in here."""

    def slow(*args, **kwargs):
        time.sleep(0.02)
        result = function(*args, **kwargs)
        time.sleep(0.02)
        return result

    return slow


def block() -> None:
    """Lock a mutex twice: the second call never returns, not even for Python's signal handlers."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)


def fail(kind: str) -> None:
    if kind == "raise":
        raise ValueError("the fault that was asked for")
    if kind == "hang":
        time.sleep(3600)
    if kind == "block":
        block()
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    kind, rank, step = (os.environ.get("FAULT", "none:0:0") + ":0:0").split(":")[:3]
    if kind == "slow":
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, slowly(getattr(os, name)))
    if os.environ.get("WAITS") == "in C":
        from distributed.processes import Processes
        from optim import train

        clip, mean, seen = train._clip, Processes.mean, []

        def faulty_clip(*args):  # after the gradients are reduced, and before the loss is
            seen.append(1)
            if len(seen) == int(step) + 1 and rank == os.environ["RANK"]:
                fail(kind)
            return clip(*args)

        def waiting_mean(*args):
            if len(seen) == int(step) + 1:
                block()
            return mean(*args)

        train._clip, Processes.mean = faulty_clip, waiting_mean
    elif kind in ("raise", "hang", "kill") and rank == os.environ.get("RANK", "0"):
        from optim import train

        step_of_training = train.training_step

        def faulty(state, *args):
            if state.step == int(step):
                fail(kind)
            return step_of_training(state, *args)

        train.training_step = faulty
    if kind == "nan":  # on every rank, with a disk that takes seconds
        from optim import train

        fsync, finite = os.fsync, train._require_finite
        main_thread = threading.main_thread()
        os.fsync = lambda file: (time.sleep(3 * (threading.current_thread() is not main_thread)), fsync(file))

        def not_finite(state, loss, norm):
            finite(state, float("nan") if state.step == int(step) else loss, norm)

        train._require_finite = not_finite
    if kind == "clock":  # it jumps back by an hour and forth by a day, every second
        real = time.time
        time.time = lambda: real() + (-3600, 86400)[int(real()) % 2]
    from errors import run_script
    from main import main as train_main

    run_script(train_main)


if __name__ == "__main__":
    main()

"""Items for the tests of the gate's runner."""

import os
import signal
import subprocess
import time

from bench.gpu_gate.rows import Skipped, row
from errors import Failure


def good(plan):
    print("some output")
    yield row("one", True, number=1.0)
    yield row("two", None, text=plan.device)


def bad(plan):
    yield row("fine", True)
    yield row("wrong", False, number=float("nan"))


def skips(plan):
    raise Skipped("it needs a reason")
    yield


def fails(plan):
    yield row("before", True)
    raise Failure("as asked")


def raises(plan):
    yield row("before", True)
    raise ZeroDivisionError("as asked")


def crashes(plan):
    yield row("before", True)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(plan, path):
    yield row("before", True)
    child = subprocess.Popen(["sleep", "100"])
    with open(path, "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    print("it hangs", flush=True)
    time.sleep(100)

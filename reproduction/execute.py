"""Training and evaluating the runs of a plan, one after the other or several at once, unattended."""

import concurrent.futures
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from errors import Failure
from reproduction.plan import Run

ROOT = Path(__file__).parents[1]
LOG = "reproduce.log"  # in each run's folder: what the scripts said


class Executor:
    """Runs what is not complete. Interrupted, each part goes on where it was when it is asked for again."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say, self._lock = say, threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._stopping = False

    def run(self, runs: Sequence[Run], jobs: int = 1, eval_flags: Sequence[str] = ()) -> list[Run]:
        """Complete all of them, `jobs` at a time; returns those that failed, whose logs tell why."""
        todo = [run for run in runs if not run.complete]
        if len(todo) < len(runs):
            self._say(f"{len(runs) - len(todo)} of {len(runs)} runs are complete")
        began, done, failed = time.monotonic(), 0, []
        for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: nothing is left running
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, signal.default_int_handler)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            try:
                futures = {pool.submit(self._complete, run, eval_flags): run for run in todo}
                for future in concurrent.futures.as_completed(futures):
                    run = futures[future]
                    if not future.result():
                        failed.append(run)
                        self._say(f"failed: {_name(run)}; {run.folder / LOG} tells why")
                        continue
                    done += 1
                    left = (time.monotonic() - began) / done * (len(todo) - done - len(failed))
                    found = run.result()
                    self._say(
                        f"{done + len(failed)} of {len(todo)}: {_name(run)}, perplexity "
                        f"{found['perplexity']:.3f}; about {left / 60:.0f} min left"
                    )
            except KeyboardInterrupt:
                self.stop()
                raise KeyboardInterrupt("the same command goes on from there") from None
            except OSError as error:
                self.stop()
                raise Failure(f"cannot write to {error.filename}: {error.strerror}") from error
        return failed

    def stop(self) -> None:
        """Have all that runs save and end; start nothing more."""
        self._stopping = True
        with self._lock:
            for process in self._processes:
                process.send_signal(signal.SIGTERM)

    def _complete(self, run: Run, eval_flags: Sequence[str]) -> bool:
        run.folder.mkdir(parents=True, exist_ok=True)
        commands = []
        if not run.trained:
            commands.append(["main.py", *run.flags])
        if not run.evaluation.exists() or commands:
            commands.append(["eval.py", "--checkpoint", str(run.folder), *eval_flags])
        if run.sweep and (commands or not run.swept):
            commands.append(["get_ppl_per_mac.py", "--checkpoint", str(run.folder), *eval_flags])
        return all(self._call(command, run.folder / LOG) for command in commands) and run.complete

    def _call(self, command: list[str], log: Path) -> bool:
        with open(log, "a", encoding="utf-8") as out, self._lock:
            if self._stopping:
                return False
            print(f"$ python {shlex.join(command)}", file=out, flush=True)
            # A session of its own: Ctrl-C reaches us alone, and we tell them.
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ},
            )  # fmt: skip
            self._processes.add(process)
        code = process.wait()
        with self._lock:
            self._processes.discard(process)
        return code == 0


def _name(run: Run) -> str:
    return f"{run.rows[0]}, seed {run.seed}"


def require_success(failed: Sequence[Run]) -> None:
    """Raises Failure where runs have failed."""
    if failed:
        raise Failure(f"{len(failed)} runs have failed: {', '.join(map(_name, failed))}")

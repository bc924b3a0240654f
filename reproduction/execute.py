"""Trains and evaluates the runs of a plan, one by one or several at a time, unattended."""

import concurrent.futures
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from errors import Failure
from reproduction.plan import Run

ROOT = Path(__file__).parents[1]
LOG = "reproduce.log"  # in each run's folder: the output of the scripts
logger = logging.getLogger(__name__)


class Executor:
    """Completes runs; an interrupted run resumes from its newest checkpoint when it is asked for again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._stopping = False

    def run(self, runs: Sequence[Run], jobs: int = 1, eval_flags: Sequence[str] = ()) -> list[Run]:
        """Train and evaluate what is missing.

        Args:
            jobs: runs at a time.
            eval_flags: further flags of eval.py and get_ppl_per_mac.py.

        Returns:
            The runs that failed; the log in the folder of each says why.

        Raises:
            Failure: a log cannot be written.
        """
        todo = [run for run in runs if not run.complete]
        if len(todo) < len(runs):
            logger.info(f"{len(runs) - len(todo)} of {len(runs)} runs are complete")
        began, done, failed = time.monotonic(), 0, []
        for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: no process is left running
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, signal.default_int_handler)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            try:
                futures = {pool.submit(self._complete, run, eval_flags): run for run in todo}
                for future in concurrent.futures.as_completed(futures):
                    run = futures[future]
                    if not future.result():
                        failed.append(run)
                        logger.info(f"failed: {_name(run)}; see {run.folder / LOG}")
                        continue
                    done += 1
                    left = (time.monotonic() - began) / done * (len(todo) - done - len(failed))
                    result = run.result()
                    assert result is not None  # a complete run has one
                    logger.info(
                        f"{done + len(failed)} of {len(todo)}: {_name(run)}, perplexity "
                        f"{result['perplexity']:.3f}; about {left / 60:.0f} min left"
                    )
            except KeyboardInterrupt:
                self.stop()
                raise KeyboardInterrupt("the same command resumes") from None
            except OSError as error:
                self.stop()
                raise Failure(f"cannot write to {error.filename}: {error.strerror}") from error
        return failed

    def stop(self) -> None:
        """Let running processes save and exit; start no others."""
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
            # In a session of its own, so that Ctrl-C reaches this process only, which stops the others.
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
    return f"{run.experiments[0]}, seed {run.seed}"


def require_success(failed: Sequence[Run]) -> None:
    """Raises Failure if there are failed runs."""
    if failed:
        raise Failure(f"{len(failed)} runs have failed: {', '.join(map(_name, failed))}")

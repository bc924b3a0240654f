"""The record of a job in its run_N: `python -m iridis.record submit|begin|end <run_N> ...`.

submission.json, written on the login node, describes the submission. run.json describes the job: commit,
diff, command, host, GPUs, environment, and each attempt of a requeued job. iridis/lib.sh calls it; `end`
prints `requeue` or `end`.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from errors import Failure, run_script
from files import write_json
from optim.checkpoint import covered_by_summary, in_folder, step_of
from provenance import git_commit, git_diff

SUBMISSION, RUN = "submission.json", "run.json"
ROOT = Path(__file__).parents[1]
PATIENCE = 3  # attempts without progress before a job is no longer requeued

# Environment variables that results and speed may depend on; secrets are left out.
ENVIRONMENT = re.compile(
    r"SLURM|CUDA|NCCL|GLOO|PYTORCH|TORCH|OMP|MKL|WANDB|HF_|TIKTOKEN|COTFORMER|CONDA|CLUSTER|\w+_DIR$|N_|EXPERIMENT|"
    r"ITERATIONS|BATCH_SIZE|ACC_STEPS|CKPT_FREQ|TRAINING_FLAGS|DEVICE|\w*CHECKPOINT|EVAL_BATCH|TOKENIZER|WORKERS"
)
SECRET = re.compile(r"(^|_)(API|KEY|TOKEN|SECRET|PASS\w*|JWT)(_|$)")


def submit(run_dir: Path, job: str, folder: str, iterations: int | None, command: list[str]) -> None:
    """Write submission.json. folder: the run folder, empty if the job does not train."""
    write_json(run_dir / SUBMISSION, {
        "job": job,
        "package": run_dir.parent.name,
        "command": shlex.join(command),
        "folder": folder or None,
        "iterations": iterations,
        "commit": git_commit(),
        "submitted": _now(),
    })  # fmt: skip


def begin(run_dir: Path, package: str, folder: str, iterations: int | None, command: list[str]) -> None:
    """Write run.json, or add an attempt to that of a requeued job."""
    attempts = (read(run_dir / RUN) or {}).get("attempts", [])
    submitted, commit = read(run_dir / SUBMISSION), git_commit()
    if submitted and submitted["commit"] != commit:
        print(f"warning: the code is {commit}, and was {submitted['commit']} when this job was submitted")
    attempts.append({
        "job": os.environ.get("SLURM_JOB_ID"),
        "host": platform.node(),
        "began": _now(),
        "from_step": saved_step(folder, iterations),
    })  # fmt: skip
    write_json(run_dir / RUN, {
        "package": package,
        "command": shlex.join(command),
        "folder": folder or None,
        "iterations": iterations,
        "commit": commit,
        "diff": git_diff(),
        "host": platform.node(),
        "cluster": os.environ.get("CLUSTER"),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "packages": _packages(),
        "environment": {
            name: value for name, value in sorted(os.environ.items())
            if ENVIRONMENT.match(name) and not SECRET.search(name)
        },
        "attempts": attempts,
    })  # fmt: skip


def end(run_dir: Path, exit_code: int, signal: str, requeue: bool) -> str:
    """Complete the record of the last attempt. Returns `requeue` if the job should be requeued, else `end`.

    A training job is complete when summary.json covers its iterations, another job when its exit code is 0.
    After PATIENCE attempts in a row without a new checkpoint a job is not requeued. Attempts that ended by
    TERM do not count, as others caused it; nor do attempts of evaluation jobs that ended by the time limit.
    """
    run = read(run_dir / RUN)
    if run is None:
        raise Failure(f"{run_dir / RUN} is missing")
    folder, iterations, attempts = run["folder"], run["iterations"], run["attempts"]
    step = saved_step(folder, iterations)
    attempts[-1] |= {"ended": _now(), "exit_code": exit_code, "signal": signal or None, "to_step": step}
    complete = covered_by_summary(Path(folder), iterations) if folder else exit_code == 0 and not signal
    run["complete"] = complete
    write_json(run_dir / RUN, run)
    where = f"step {step} of {iterations}" if folder else f"exit code {exit_code}"
    if complete:
        _say("complete")
    elif not requeue:
        _say(f"not complete ({where}); {run['command']} resumes it")
    elif _stuck(attempts) >= PATIENCE:
        _say(f"not complete ({where}), and {PATIENCE} attempts in a row saved nothing new: not requeued")
    else:
        _say(f"not complete ({where}): requeued")
        return "requeue"
    return "end"


def saved_step(folder: str | None, iterations: int | None) -> int | None:
    """The step of the newest checkpoint in a run folder, by its name; None if there is no folder."""
    if not folder:
        return None
    saved = in_folder(Path(folder))
    if not saved:
        return 0
    step = step_of(saved[0])
    return iterations if step is None else step


def read(path: Path) -> dict[str, Any] | None:
    """The content of submission.json or run.json; None if it is missing. Raises Failure if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Failure(f"{path} is damaged: {error}") from error


def jobs_of(folder: Path) -> list[str]:
    """Jobs in the queue that train the run in `folder`, with their states."""
    states = job_states() or {}
    found = []
    for path in ROOT.glob(f"iridis/*/run_*/{SUBMISSION}"):
        submitted = read(path)
        if submitted and submitted["folder"] == str(folder) and submitted["job"] in states:
            found.append(f"job {submitted['job']} ({states[submitted['job']]['state']})")
    return sorted(found)


def job_states() -> dict[str, dict[str, str]] | None:
    """Your jobs in the queue by number: state, time left, reason to wait. None if Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%L|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.strip().split("|", 3) for line in done.stdout.splitlines()]
    return {
        row[0]: dict(zip(("state", "left", "reason"), row[1:], strict=True)) for row in rows if len(row) == 4
    }


def _stuck(attempts: list[dict[str, Any]]) -> int:
    """The number of last attempts that saved no new checkpoint."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.get("signal") == "TERM" or "ended" not in attempt:
            continue
        trains = attempt["to_step"] is not None
        if attempt["to_step"] > attempt["from_step"] if trains else attempt["signal"]:
            break
        count += 1
    return count


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _packages() -> dict[str, str]:
    found = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)  # stdout is for `requeue` or `end`


def main() -> None:
    """The command line, used by iridis/lib.sh."""
    parser = argparse.ArgumentParser(
        prog="python -m iridis.record", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("event", choices=("submit", "begin", "end"))
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--job", default="")
    parser.add_argument("--package", default="")
    parser.add_argument("--folder", default="")
    parser.add_argument("--iterations", default="")
    parser.add_argument("--exit_code", type=int, default=0)
    parser.add_argument("--signal", default="")
    parser.add_argument("--requeue", action="store_true")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args, command = parser.parse_args(words[:split]), words[split + 1 :]
    iterations = int(args.iterations) if args.iterations else None
    if args.event == "submit":
        submit(args.run_dir, args.job, args.folder, iterations, command)
    elif args.event == "begin":
        begin(args.run_dir, args.package, args.folder, iterations, command)
    else:
        print(end(args.run_dir, args.exit_code, args.signal, args.requeue))


if __name__ == "__main__":
    run_script(main)

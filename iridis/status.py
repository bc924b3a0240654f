"""The last run of each package, as a table: `bash iridis/status.sh [package ...]`."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from errors import UsageError, run_script, stdout_is_result, unknown
from iridis.record import ROOT, RUN, SUBMISSION, job_states, read, saved_step
from optim.checkpoint import covered_by_summary
from tables import aligned_table

HEADINGS = ("package", "run", "job", "state", "step", "loss", "time left", "next")


def packages() -> list[Path]:
    """The folders in iridis/ with a job.sh."""
    return sorted(path.parent for path in ROOT.glob("iridis/*/job.sh"))


def rows(chosen: list[Path], states: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
    """Rows of the table, with cells as in HEADINGS. states: from `record.job_states`."""
    return [_row(package, states) for package in chosen]


def _row(package: Path, states: dict[str, dict[str, str]]) -> tuple[str, ...]:
    runs = [path for path in package.glob("run_*") if re.fullmatch(r"run_\d+", path.name)]
    if not runs:
        return (package.name, "-", "-", "never run", "-", "-", "-", f"bash iridis/{package.name}/job.sh")
    runs.sort(key=lambda path: int(path.name.removeprefix("run_")))
    # In a chain, show the running job, not the ones waiting for it.
    running = [path for path in runs if states.get(_job(path), {}).get("state") == "RUNNING"]
    latest = (running or runs)[-1]
    submitted, run, job = read(latest / SUBMISSION) or {}, read(latest / RUN) or {}, _job(latest)
    in_queue = states.get(job)
    step, loss, left = _progress(run or submitted)
    if in_queue:
        state = in_queue["state"]
        then = f"wait ({in_queue['reason']})" if state == "PENDING" else "wait"
    else:
        state, then = _outcome(run)
        then = then or f"see {_logs(latest, job)}"
        left = "-" if state == "complete" else left
    return (package.name, latest.name, job, state, step, loss, left, then)


def _outcome(run: dict[str, Any]) -> tuple[str, str]:
    """How an ended job ended, and the next action; empty if one should read its log."""
    folder = run.get("folder")
    if run.get("complete") or (folder and covered_by_summary(Path(folder), run["iterations"])):
        return "complete", "-"  # if not by this job, then by another
    if not run:
        return "did not start", ""
    code = (run["attempts"] or [{}])[-1].get("exit_code")
    if code:
        return f"failed ({code})", ""
    return "killed" if code is None else "stopped", run["command"]


def _job(run_dir: Path) -> str:
    """The number of the last job of this run_N, or `local`."""
    submitted, run = read(run_dir / SUBMISSION) or {}, read(run_dir / RUN) or {}
    attempts = run.get("attempts") or [{}]
    return submitted.get("job") or attempts[-1].get("job") or "local"


def _logs(run_dir: Path, job: str) -> str:
    name = "local.log" if job == "local" else f"slurm_{job}.err"
    return str((run_dir / name).relative_to(ROOT))


def _progress(run: dict[str, Any]) -> tuple[str, str, str]:
    """Steps done and asked for, the last training loss, and the estimated time left."""
    folder, iterations = run.get("folder"), run.get("iterations")
    if not folder or not iterations:
        return "-", "-", "-"
    lines = _last_lines(Path(folder) / "metrics.jsonl")
    step = max(lines[-1]["step"] if lines else 0, saved_step(folder, iterations) or 0)
    losses = [line["train_loss"] for line in lines if line.get("train_loss") is not None]
    loss = f"{losses[-1]:.3f}" if losses else "-"
    return f"{step:,} of {iterations:,}", loss, _time_left(lines, iterations - step)


def _time_left(lines: list[dict[str, Any]], steps: int) -> str:
    """Estimated from the last logged steps."""
    timed = [line for line in lines if line.get("seconds") is not None]
    if len(timed) < 2 or steps <= 0 or timed[-1]["step"] <= timed[0]["step"]:
        return "-"
    per_step = (timed[-1]["seconds"] - timed[0]["seconds"]) / (timed[-1]["step"] - timed[0]["step"])
    minutes = per_step * steps / 60
    return (
        f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else "under 1 min"
    )


def _last_lines(path: Path, size: int = 65536) -> list[dict[str, Any]]:
    """The complete lines at the end of a metrics.jsonl, which may still be written."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            texts = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # the first is cut, unless the file is short
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bash iridis/status.sh", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("packages", nargs="*", help="default: all")
    names = parser.parse_args().packages
    known = {package.name: package for package in packages()}
    for name in names:
        if name not in known:
            raise UsageError(unknown(f"there is no package {name}", name, known))
    stdout_is_result()
    states = job_states()
    chosen = [known[name] for name in names] if names else list(known.values())
    print(aligned_table([HEADINGS, *rows(chosen, states or {})]))
    if states is None:
        print("(Slurm does not answer here: the queue is unknown)")


if __name__ == "__main__":
    run_script(main)

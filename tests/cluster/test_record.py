"""When a job is queued again, and when it is not."""

import json

import pytest

from iridis import record

STOPPED = {"exit_code": 0, "signal": "USR1", "requeue": True}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job that trains a run of 100 iterations: `job(step)` is one attempt, which leaves a checkpoint."""
    monkeypatch.setattr(record, "_packages", dict)
    folder, run_dir = tmp_path / "exp", tmp_path / "package" / "run_1"
    run_dir.mkdir(parents=True)
    folder.mkdir()

    def attempt(step=None, complete=False, **end):
        record.begin(run_dir, "package", str(folder), 100, ["job.sh"])
        if step is not None:
            (folder / f"ckpt_{step}.pt").touch()
        if complete:
            (folder / "ckpt.pt").touch()
            (folder / "summary.json").write_text(json.dumps({"iterations": 100}))
        return record.end(run_dir, **(STOPPED | end))

    attempt.record = lambda: json.loads((run_dir / "run.json").read_text())
    return attempt


def test_until_it_is_complete_and_never_after(job):
    assert [job(10), job(20), job(30)] == ["requeue"] * 3
    assert job(complete=True) == "end" and job() == "end"
    steps = [(attempt["from_step"], attempt["to_step"]) for attempt in job.record()["attempts"]]
    assert steps == [(0, 10), (10, 20), (20, 30), (30, 100), (100, 100)] and job.record()["complete"]


def test_three_attempts_without_progress(job, capsys):
    assert [job(exit_code=1, signal=""), job(exit_code=1, signal="")] == ["requeue"] * 2
    assert job(5, exit_code=1, signal="") == "requeue"  # progress begins the count anew
    crashes = [job(exit_code=1, signal="") for _ in range(3)]
    assert crashes == ["requeue", "requeue", "end"]
    assert "3 attempts in a row saved nothing new" in capsys.readouterr().err


def test_being_pre_empted_is_not_its_fault(job):
    assert [job(signal="TERM") for _ in range(5)] == ["requeue"] * 5


def test_only_where_it_was_asked_for(job, capsys):
    assert job(10, requeue=False) == "end"
    assert "job.sh resumes it" in capsys.readouterr().err


def test_secrets_are_not_recorded(job, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("WANDB_MODE", "offline")
    job(10)
    environment = job.record()["environment"]
    assert environment["WANDB_MODE"] == "offline" and "secret" not in environment.values()

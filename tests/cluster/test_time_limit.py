"""Jobs that are cut off by their real time limit, which Slurm counts in minutes: `make test-cluster`."""

import json

import pytest

from tests.cluster.test_jobs import assert_same_as_uncut, attempts, uncut

# On two cores a minute and a half of training; Slurm warns 20 to 60 seconds before the minute is over.
FLAGS = "--save_checkpoint_freq 100000 --iterations {} --eval_freq 1000"
CUT = "--time 1 --signal B:USR1@20"


@pytest.mark.slow
def test_three_chained_jobs_that_are_cut_off_by_their_limit(on_slurm):
    """As many chains of three as the run needs: at least two jobs are cut, and the weights are the same."""
    timing = on_slurm.package("lncot-train", FLAGS.format(1000), EXPS_DIR=f"{on_slurm.scratch}/timing")
    on_slurm.wait(timing, seconds=600)
    (summary,) = on_slurm.scratch.glob("timing/**/summary.json")
    seconds = json.loads(summary.read_text())["training_seconds"]
    flags = FLAGS.format(int(1000 * 75 / seconds))
    for _ in range(3):
        last = on_slurm.package("lncot-train", f"{flags} {CUT} --chain 3")
        on_slurm.wait(last, seconds=600)
        if (on_slurm.folder("lncot-train") / "summary.json").exists():
            break
    count = len(list(on_slurm.run_dir("lncot-train").parent.glob("run_[0-9]*")))
    done = [a for number in range(2, count + 1) for a in attempts(on_slurm, number=number)]
    assert sum(attempt["signal"] == "USR1" for attempt in done) >= 2, done
    on_slurm.wait(uncut(on_slurm, flags), seconds=600)
    assert_same_as_uncut(on_slurm)


@pytest.mark.slow
def test_requeued_at_the_limit(on_slurm):
    job = on_slurm.package("lncot-train", f"{FLAGS.format(4000)} {CUT} --requeue")
    state = on_slurm.wait(job, seconds=900)
    assert int(state["Restarts"]) >= 1
    done = attempts(on_slurm)
    assert [attempt["signal"] for attempt in done[:-1]] == ["USR1"] * (len(done) - 1)
    assert done[-1]["to_step"] == 4000

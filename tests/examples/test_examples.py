"""The examples run in small sizes, and print what their first lines promise."""

import re

import pytest

pytestmark = pytest.mark.process
SMALL = (
    "--dataset shakespeare-char --vocab_size 64 --n_embd 16 --sequence_length 16 --iterations 12 --device cpu"
)


@pytest.fixture
def run(scripts):
    def run(name):
        flags = f"{SMALL} --data_dir {scripts.data_dir} --results_base_folder {scripts.results}"
        process = scripts.start(f"-m examples.{name}", flags)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    return run


def test_train_from_python(run):
    said = run("train_from_python")
    assert re.search(r"[\d,]+ parameters, [\d,]+ MACs for 16 tokens", said)
    assert re.search(r"step 11: loss \d\.\d+\nvalidation loss \d\.\d+\nthe ", said)


def test_route_by_budget(run):
    said = run("route_by_budget")
    passes = [float(number) for number in re.findall(r"([\d.]+) of 5 passes on average", said)]
    assert len(passes) == 2 and 1 <= passes[0] <= passes[1] <= 5
    assert said.count("threshold routing (causal), thresholds") == said.count("\nthe ") == 2


def test_add_variant(run, scripts):
    said = run("add_variant")
    assert re.search(r"but: validation loss \d\.\d+ nats per token\ninjected: validation loss \d\.\d+ ", said)
    assert list((scripts.results / "shakespeare-char" / "input_injection").iterdir())

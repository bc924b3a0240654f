"""A run resumes bit for bit: no operation of any model sums in an order of its own, or is refused for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.generation import generate
from models.variants import VARIANTS
from tests.cuda.deterministic import refuses
from tests.models.test_language_model import build

# Outside of deterministic mode, CPU threads add at once to the places that these name twice.
UNORDERED_ON_CPU = {"index_put", "index_put_", "_index_put_impl_"}


class Recorder(TorchDispatchMode):
    """Collects the names of the operations that would not be deterministic."""

    def __init__(self):
        super().__init__()
        self.refused, self.unordered, self.seen = set(), set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        base = func._schema.name.removeprefix("aten::")
        self.seen.add(base)
        if refuses(func, args):
            self.refused.add(base)
        if base in UNORDERED_ON_CPU and len(args) > 3 and args[3]:  # accumulate
            places = args[1][0].flatten()
            if len(places.unique()) < len(places):
                self.unordered.add(base)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def strict():
    """torch also raises for what it refuses on CPUs."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def options(variant):
    routed = {"training_length_factor": [0.6, 0.3]} if variant.routed else {}
    return {"n_layer_begin": 1, "n_layer_end": 1, "depth_embedding": "learned", "dropout": 0.1, **routed}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("loss", ["chunked", "plain"])
def test_training_is_deterministic(variant, loss, strict):
    network = build(variant.name, loss=loss, **options(variant)).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    ids = torch.randint(0, 40, (2, 9))
    with Recorder() as recorder:
        network(ids[:, :-1], ids[:, 1:])["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    assert "embedding_dense_backward" in recorder.seen  # the backward pass is recorded
    assert not recorder.refused and not recorder.unordered


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_evaluation_and_generation_are_not_refused(variant, strict):
    network = build(variant.name, **options(variant))
    ids = torch.randint(0, 40, (2, 9))
    thresholds = [0.5, 0.5] if variant.routed else None
    with torch.no_grad(), Recorder() as recorder:
        network(ids[:, :-1], ids[:, 1:], get_predictions=True)
        network(ids[:, :-1], ids[:, 1:], get_logits=True, thresholds=thresholds)
        for cached in (True, False):
            list(generate(network, [[1, 2], [3]], 4, top_k=9, thresholds=thresholds, cached=cached))
    assert not recorder.refused


@pytest.mark.parametrize("work", [
    lambda: torch.ones(3).cumsum(0),
    lambda: torch.bincount(torch.tensor([1, 2]), torch.ones(2)),
    lambda: torch.ones(3, requires_grad=True)[torch.tensor([1, 1])].sum().backward(),
])  # fmt: skip
def test_the_recorder_finds_them(work):
    with Recorder() as recorder:
        work()
    assert recorder.refused | recorder.unordered

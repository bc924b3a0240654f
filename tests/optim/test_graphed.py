"""--cuda_graphs. On a CPU all but the capture is real: replaying runs the captured function again."""

import contextlib
import dataclasses

import pytest
import torch

from data.batches import MicroBatch
from distributed.parallel import RankSlice, SingleProcess
from errors import Failure, UsageError
from optim.graphed import WARM_UP, GraphedMicroBatch
from optim.state import TrainState
from optim.train import run_micro_batch, training_step
from tests.models.reference import RESERVED, make
from tests.optim.test_optimizers import CONFIG

CPU = torch.device("cpu")
TRAINING = dataclasses.replace(CONFIG, acc_steps=2, iterations=20, grad_clip=0.5)
COUNTED = [9, 9, 3, 9, 2, 9, 9, 9, 9, 5]  # targets of each micro-batch


def steps(micro_batch_of, **fields):
    """Losses, norms and weights of five steps of two micro-batches, whose targets differ in number."""
    network = (
        make("ln_cotformer", dropout=0.1, depth_embedding="learned", **RESERVED, **fields).float().train()
    )
    state = TrainState.fresh(network, TRAINING, torch.amp.GradScaler("cpu", enabled=False))
    micro_batch, found = micro_batch_of(network), []
    ids = torch.randint(0, 31, (len(COUNTED), 1, 10), generator=torch.Generator().manual_seed(1))
    batches = []
    for part, count in zip(ids, COUNTED, strict=True):
        targets = part[:, 1:].clone()
        targets[:, count:] = -1
        batches.append(MicroBatch(part[:, :-1], targets, count))
    left = iter(batches)
    for _ in range(len(COUNTED) // 2):
        found.append(
            training_step(
                state, network, left, RankSlice.of(1, 2, 0, 1), TRAINING, contextlib.nullcontext(),
                SingleProcess(), lambda step: False, micro_batch,
            )
        )  # fmt: skip
    return found, list(network.parameters())


def test_the_same_steps_to_the_bit():
    """Captured in the middle of a step; inputs, weights of losses and gradients change in place."""
    assert WARM_UP % 2 == 1
    captured = []

    def capture(work):
        captured.append(work)
        return work

    expected, weights = steps(lambda network: None)
    found, others = steps(lambda network: GraphedMicroBatch(run_micro_batch, network, CPU, capture=capture))
    assert found == expected and len(captured) == 1
    assert all(map(torch.equal, others, weights))


def test_gradients_stay_where_the_graph_adds_to_them():
    network = make("base").float().train()
    state = TrainState.fresh(network, TRAINING, torch.amp.GradScaler("cpu", enabled=False))
    micro_batch = GraphedMicroBatch(run_micro_batch, network, CPU, capture=lambda work: work)
    idx = torch.randint(0, 31, (1, 9))
    places = []
    for _ in range(WARM_UP + 3):
        micro_batch(state, network, idx, idx, 0.0, 1, contextlib.nullcontext())
        places.append([weight.grad.data_ptr() for weight in network.parameters()])
        kept = [weight.grad.clone() for weight in network.parameters()]
        state.optimizer.zero_grad(set_to_none=True)
    assert places[WARM_UP] == places[-1]
    micro_batch(state, network, idx, idx, 0.0, 1, contextlib.nullcontext())
    assert all(torch.equal(weight.grad, old) for weight, old in zip(network.parameters(), kept, strict=True))


@pytest.mark.parametrize(
    ("model", "fields", "processes", "reason"),
    [
        ("adm", {}, 1, "adm stops tokens early"),
        ("stick_breaking", {}, 1, "stops tokens early"),
        ("cotformer", {"activation_checkpointing": "block"}, 1, "--activation_checkpointing"),
        ("cotformer", {}, 2, "for one process"),
    ],
)
def test_what_is_not_fixed_is_refused(model, fields, processes, reason):
    with pytest.raises(UsageError, match=f"--cuda_graphs .*{reason}.*; leave it out"):
        GraphedMicroBatch(run_micro_batch, make(model, **fields), CPU, processes, capture=lambda work: work)


def test_a_cpu_is_refused(scripts):
    said = scripts.refuse("main.py", scripts.train_flags("--cuda_graphs"), 2)
    assert "--cuda_graphs needs a GPU, and this runs on cpu; leave it out" in said
    assert not list(scripts.results.glob("*/*/*"))  # no folder of a run


def test_a_capture_that_fails():
    def broken(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    network = make("base").float().train()
    state = TrainState.fresh(network, TRAINING, torch.amp.GradScaler("cpu", enabled=False))
    micro_batch = GraphedMicroBatch(run_micro_batch, network, CPU, capture=broken)
    idx = torch.randint(0, 31, (1, 9))
    with pytest.raises(Failure, match=r"cannot be captured .operation not permitted.*; leave it out"):
        for _ in range(WARM_UP + 1):
            micro_batch(state, network, idx, idx, 0.0, 1, contextlib.nullcontext())

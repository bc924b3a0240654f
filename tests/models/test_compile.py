"""A training step as one graph, without breaks, for every model: the same numbers and gradients."""

import pytest
import torch

from distributed import Precision
from models.variants import VARIANTS
from optim.compiling import compile_training
from tests.models.reference import RESERVED, make

NAMES = [variant.name for variant in VARIANTS if variant.alias != "adaptive_but_macs"]  # it has a twin
STEPS = 4
GRAPHS = torch._dynamo.utils.counters


def steps(model, compiled, **fields):
    """Output and gradients of several forward and backward passes, with capacities of their own."""
    sizes = {"n_layer": 3, "depth_embedding": "learned", "halt_threshold": 0.6, **RESERVED}
    network = make(model, **sizes, **fields).train()
    if compiled:
        torch._dynamo.reset()
        precision = Precision(torch.device("cpu"), torch.float32, "float32")
        compile_training(network, "step", precision, backend="aot_eager")
    idx = torch.randint(0, 31, (2, 33))
    for step in range(STEPS):
        network.zero_grad()
        torch.manual_seed(25 + step)  # the third draw lets all tokens of a pass go on
        output = network(idx, idx.roll(-1, 1))
        output["loss"].backward()
        yield output, {name: part.grad for name, part in network.named_parameters()}


def same(model, **fields):
    """How many graphs were made."""
    before = GRAPHS["stats"]["unique_graphs"]
    both = zip(steps(model, False, **fields), steps(model, True, **fields), strict=True)
    for (expected, reference), (output, found) in both:
        torch.testing.assert_close(output["loss"], expected["loss"], rtol=1e-12, atol=0)
        assert float(output["average_depth"]) == pytest.approx(float(expected["average_depth"]))
        assert [float(count) for count in output["tokens_per_pass"]] == pytest.approx(
            expected["tokens_per_pass"]
        )
        for name, part in found.items():
            torch.testing.assert_close(part, reference[name], rtol=1e-10, atol=1e-12, msg=name)
    return GRAPHS["stats"]["unique_graphs"] - before


@pytest.mark.parametrize("model", NAMES)
def test_a_step_is_one_graph(model):
    """Numbers of tokens that are drawn or found out are no reason for another."""
    assert same(model) == 1


@pytest.mark.parametrize(("model", "kind"), [("ln_cotformer", "block"), ("stick_breaking", "repeat")])
def test_with_activation_checkpointing(model, kind):
    assert same(model, activation_checkpointing=kind) == 1


def test_with_a_window():
    assert same("cotformer", attention_window_length=5) == 1

"""--compile block: the same numbers and gradients as without, and few graphs."""

import pytest
import torch

from distributed import Precision
from errors import Failure, UsageError
from models.config import ModelConfig
from models.language_model import LanguageModel
from models.variants import VARIANTS
from optim.compiling import compile_training
from tests.models.reference import RESERVED, make

NAMES = [variant.name for variant in VARIANTS if variant.alias != "adaptive_but_macs"]  # it has a twin
CPU = torch.device("cpu")
PLAIN = Precision(CPU, torch.float32, "float32")
GRAPHS = torch._dynamo.utils.counters
LENGTHS = (2, 9), (3, 12), (1, 4), (2, 33)


def steps(model, compiled, **fields):
    """Loss and gradients of several training passes, each of another size and with other capacities."""
    sizes = {"n_layer": 4, "depth_embedding": "learned", "halt_threshold": 0.6, **RESERVED}
    network = make(model, **sizes, **fields).train()
    if compiled:
        torch._dynamo.reset()
        compile_training(network, "block", PLAIN, backend="aot_eager")
    for number, size in enumerate(LENGTHS):
        network.zero_grad()
        torch.manual_seed(25 + number)
        idx = torch.randint(0, 31, size)
        loss = network(idx, idx.roll(-1, 1))["loss"]
        loss.backward()
        yield loss, {name: part.grad for name, part in network.named_parameters()}


def graphs(model, **fields):
    """How many graphs were made for the same losses and gradients."""
    before = GRAPHS["stats"]["unique_graphs"]
    both = zip(steps(model, False, **fields), steps(model, True, **fields), strict=True)
    for (expected, reference), (loss, found) in both:
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for name, part in found.items():
            torch.testing.assert_close(part, reference[name], rtol=1e-10, atol=1e-12, msg=name)
    return GRAPHS["stats"]["unique_graphs"] - before


@pytest.mark.parametrize("model", NAMES)
def test_four_graphs_for_all_blocks_passes_and_sizes(model):
    """Weights; before, after and between attention; one more where keys are made of other representations."""
    with_sources = "but_mod" in model or "halting" in model
    assert graphs(model) == 4 + with_sources


@pytest.mark.parametrize("kind", ["block", "repeat"])
@pytest.mark.parametrize("model", ["adm", "stick_breaking", "mla"])
def test_with_activation_checkpointing(model, kind):
    assert graphs(model, activation_checkpointing=kind) == 4 + (model == "stick_breaking")


def test_with_biases_a_window_and_no_positions():
    assert graphs("cotformer", bias=True, attention_window_length=5, positional_encoder="none") == 4


def test_passes_of_one_token_or_none_stay_eager():
    assert graphs("adm", training_length_factor=[0.2, 0.0]) == 4


def test_evaluation_stays_eager():
    network = make("cotformer")
    compile_training(network, "block", PLAIN, backend="aot_eager")
    network.transformer.middle[0].graphs.run = None
    network(torch.randint(0, 31, (2, 9)))


def test_dropout_draws_the_same_numbers_again():
    network = make("cotformer", dropout=0.2, activation_checkpointing="block").train()
    compile_training(network, "block", PLAIN, backend="aot_eager")
    idx = torch.randint(0, 31, (2, 9))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(network(idx, idx)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_bfloat16_is_as_accurate_as_eager_autocast():
    """Of gradients too, although a LayerNorm's is made of those of the projection that reads it."""
    found = {}
    for kind, dtype in (("exact", torch.float32), ("eager", torch.bfloat16), ("block", torch.bfloat16)):
        precision = Precision(CPU, dtype, "")
        sizes = {"n_layer": 3, "n_embd": 64, "n_head": 4, "vocab_size": 100, "bias": True, **RESERVED}
        torch.manual_seed(3)
        network = LanguageModel(ModelConfig(model="cotformer", n_repeat=3, **sizes)).train()
        torch.nn.init.normal_(network.transformer.ln_f.weight)
        if kind == "block":
            torch._dynamo.reset()
            compile_training(network, "block", precision, backend="aot_eager")
        idx = torch.randint(0, 100, (4, 64), generator=torch.Generator().manual_seed(1))
        with precision.autocast():
            network(idx, idx.roll(-1, 1))["loss"].backward()
        found[kind] = {name: part.grad for name, part in network.named_parameters()}
    for name, exact in found["exact"].items():
        eager, block = ((found[kind][name] - exact).norm() / exact.norm() for kind in ("eager", "block"))
        assert found["block"][name].dtype == torch.float32
        assert block < 1.5 * eager < 0.05, name


@pytest.mark.process
def test_with_inductor():
    network = make("ln_cotformer", depth_embedding="learned", **RESERVED).float().train()
    idx = torch.arange(18).view(2, 9)
    losses = []
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            compile_training(network, "block", PLAIN)
        losses.append(network(idx, idx.roll(-1, 1))["loss"].detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("required", [False, True])
def test_a_compiler_that_fails(required, caplog):
    """Asked for, a failure ends the run with a sentence; chosen by auto, training continues without."""

    def broken(graph, inputs):
        raise RuntimeError("ptxas fatal\nmore about it")

    network = make("cotformer").train()
    torch._dynamo.reset()
    if required:
        with pytest.raises(Failure, match=r"--compile block: .*ptxas fatal.*; give --compile none"):
            compile_training(network, "block", PLAIN, required=True, backend=broken)
    else:
        compile_training(network, "block", PLAIN, required=False, backend=broken)
        assert "ptxas fatal" in caplog.text and "training continues without" in caplog.text
    assert "more about it" not in caplog.text
    assert network.compute_in_training is None
    network(torch.randint(0, 31, (2, 9)))


def test_a_step_that_cannot_be_compiled():
    def broken(graph, inputs):
        raise RuntimeError("ptxas fatal")

    network = make("cotformer").train()
    torch._dynamo.reset()
    compile_training(network, "step", PLAIN, backend=broken)
    idx = torch.randint(0, 31, (2, 9))
    with pytest.raises(Failure, match=r"--compile step: .*ptxas fatal"):
        network(idx, idx)


def test_a_cpu_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"--compile block on a CPU needs a C\+\+ compiler"):
        compile_training(make("cotformer"), "block", PLAIN)

"""Activation checkpointing: the same numbers, gradients and draws, and less that is kept."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.kv_cache import KVCache
from models.variants import VARIANTS
from tests.models.reference import RESERVED, make

KINDS = ("none", "repeat", "block")
NAMES = [variant.name for variant in VARIANTS]


def step(model, kind, idx, training=True, **fields):
    """Loss and gradients of a forward and a backward pass, and the generator's state behind them."""
    fields |= {"activation_checkpointing": kind, "depth_embedding": "learned", **RESERVED}
    network = make(model, idx.device, **fields)
    network.train(training)
    torch.manual_seed(5)  # capacities and dropout
    loss = network(idx, idx.roll(-1, 1))["loss"]
    loss.backward()
    draw = torch.rand(1), torch.rand(1, device=idx.device)
    return loss, {name: part.grad for name, part in network.named_parameters()}, draw


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("model", NAMES)
def test_same_loss_gradients_and_draws(model, dropout, device):
    """halt_threshold lets tokens of stick breaking stop at different passes."""
    idx = torch.randint(0, 31, (2, 9)).to(device)
    fields = {"dropout": dropout, "halt_threshold": 0.6, "training_length_factor": [0.7, 0.4]}
    loss, gradients, draw = step(model, "none", idx, **fields)
    for kind in KINDS[1:]:
        again, found, following = step(model, kind, idx, **fields)
        torch.testing.assert_close(again, loss, rtol=1e-13, atol=0)
        assert all(map(torch.equal, following, draw))
        for name, reference in gradients.items():
            torch.testing.assert_close(found[name], reference, rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("model", ["cotformer", "adm", "adaptive_but", "mla"])
def test_with_a_window(model, kind):
    idx = torch.randint(0, 31, (2, 9))
    loss, gradients, _ = step(model, "none", idx, attention_window_length=3)
    again, found, _ = step(model, kind, idx, attention_window_length=3)
    torch.testing.assert_close(again, loss, rtol=1e-13, atol=0)
    for name, reference in gradients.items():
        torch.testing.assert_close(found[name], reference, rtol=1e-12, atol=1e-13, msg=name)


class Kept(TorchDispatchMode):
    """Bytes of all that was made and is still there, whoever holds it: autograd, stores or closures."""

    def __init__(self):
        super().__init__()
        self._sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for part in tree_leaves(made):
            if isinstance(part, torch.Tensor):
                reference = StorageWeakRef(part.untyped_storage())
                self._sizes[reference] = part.untyped_storage().nbytes()
        return made

    @property
    def bytes(self):
        return sum(size for reference, size in self._sizes.items() if not reference.expired())


def kept(kind, training=True, **fields):
    """What a CoTFormer holds behind its forward pass of 5 repeats."""
    sizes = {"n_repeat": 5, "n_layer": 4, "n_embd": 16, "vocab_size": 8}
    network = make("cotformer", activation_checkpointing=kind, **sizes, **fields).train(training)
    idx = torch.randint(0, 8, (2, 32))
    with Kept() as seen:
        loss = network(idx, idx)["loss"]
        assert loss.requires_grad
        return seen.bytes


@pytest.mark.parametrize(("attention", "of_block", "of_repeat"), [("plain", 5, 7), ("fast", 4.2, 5)])
def test_saved_activations_per_block_and_pass(attention, of_block, of_repeat):
    """Of a block in a pass remain keys and values (2 C), and its input, where it is not the pass's: of more
    than 20 C, or a little less where attention copies no keys of earlier passes, but keeps its masks, which
    are large next to a width of 16."""
    none, repeat, block = (kept(kind, attention=attention) for kind in KINDS)
    assert repeat < block
    assert none > of_block * block
    assert none > of_repeat * repeat


def test_how_often_blocks_run(monkeypatch):
    """The middle's blocks run twice with either; those around it only with `block`; none in evaluation."""
    from models.block import MLP

    calls = []
    run = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: (calls.append(x.shape), run(self, x))[1])
    idx = torch.randint(0, 31, (1, 9))
    counted = {}
    for kind in KINDS:
        for training in (True, False):
            calls.clear()
            step("cotformer", kind, idx, training)
            counted[kind, training] = len(calls)
    once = 3 * 2 + 2
    assert {counted[kind, False] for kind in KINDS} == {once}
    assert [counted[kind, True] for kind in KINDS] == [once, once + 3 * 2, 2 * once]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_is_written_once(kind):
    """Even in training mode: what a cache holds has no backward pass."""
    network = make("cotformer", activation_checkpointing=kind).train()
    cache = KVCache(1, 9)
    with torch.no_grad():
        expected = network(torch.arange(9)[None], get_logits=True)["logits"]
        network(torch.arange(8)[None], cache=cache)
        found = network(torch.tensor([[8]]), get_logits=True, cache=cache)["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

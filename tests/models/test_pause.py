"""Pause tokens: against a standard transformer on the longer sequence, written out."""

import pytest
import torch

from models.generation import generate
from tests.models.reference import make
from tests.models.test_repeaters import reference_block


def reference_logits(network, ids):
    """Token by token: it, its pauses; the standard transformer; of each token its last pause."""
    x = []
    for token in ids:
        x.append(network.transformer.wte.weight[token])
        x += [network.pause_emb.embs.weight[index] for index in range(network.config.n_pause)]
    x = torch.stack(x)
    for block in network.transformer.h:
        x = reference_block(block, x, network.config, [[] for _ in range(network.config.n_head)])
    last = [t * (1 + network.config.n_pause) + network.config.n_pause for t in range(len(ids))]
    return network.transformer.ln_f(x[last]) @ network.transformer.wte.weight.T


@pytest.mark.parametrize(
    "fields", [{}, {"n_pause": 1, "bias": True}, {"n_pause": 2, "attention_window_length": 4}], ids=str
)
def test_forward_and_backward_equal_the_reference(fields):
    network = make("pause", n_layer=2, **fields)
    ids, targets = torch.randint(0, 31, (2, 5))
    output = network(ids[None], targets[None], get_logits=True)
    expected = reference_logits(network, ids)
    torch.testing.assert_close(output["logits"][0], expected, atol=1e-10, rtol=1e-10)
    loss = -expected.log_softmax(-1)[torch.arange(5), targets].mean()
    torch.testing.assert_close(output["loss"], loss)
    torch.testing.assert_close(network(ids[None], get_logits=True)["logits"][0], expected[-1:])
    weights, direction = list(network.parameters()), torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((logits * direction).sum(), weights) for logits in (output["logits"][0], expected)
    ]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-8, rtol=1e-8)


def test_every_pause_has_an_embedding_of_its_own():
    """Each gets a gradient; and exchanging two changes the predictions."""
    network = make("pause", n_layer=2)
    ids = torch.randint(0, 31, (1, 5))
    before = network(ids, ids, get_logits=True)
    before["loss"].backward()
    assert network.pause_emb.embs.weight.grad.abs().sum(-1).all()
    with torch.no_grad():
        network.pause_emb.embs.weight[:2] = network.pause_emb.embs.weight[:2].flip(0).clone()
        after = network(ids, ids, get_logits=True)
    assert (before["logits"] - after["logits"]).abs().max() > 1e-3


def test_the_cache_holds_the_pauses_too():
    """1 + n_pause rows a token, in prompts of several lengths; a text can grow to sequence_length."""
    network = make("pause", n_pause=2)
    cache = network.new_cache(2)
    with torch.no_grad():
        network(torch.randint(0, 31, (2, 4)), cache=cache, lengths=[4, 2])
        assert cache.lengths == [4, 2]
        output = network(torch.randint(0, 31, (2, 5)), cache=cache, get_routing=True)
    assert cache.lengths == [9, 7] and output["passes"].shape == (2, 5)
    layer = 2 * 12 * 8
    assert cache.bytes_per_token == 3 * 4 * layer
    with pytest.raises(ValueError, match="the cache holds 9 tokens a sequence, not 10"):
        network(torch.zeros(2, 1, dtype=torch.long), cache=cache)
    fed = [[1, 2, 3], [4]]
    texts = [[step.tokens.tolist() for step in generate(network, fed, 20, temperature=0, cached=on)]
             for on in (True, False)]  # fmt: skip
    assert texts[0] == texts[1]

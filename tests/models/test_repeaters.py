"""Each repeater against a slow, obvious reference: loops over tokens, passes and keys, one head at a time."""

import itertools
import math

import pytest
import torch

from models.repeaters import RepeaterOutput
from tests.models.reference import RESERVED, make, rotated


def reference_block(block, x, config, history):
    """x (T, C). history: by head, (key, value, position) of earlier passes; this pass is added."""
    n_tokens, width = x.shape
    size = width // config.n_head
    normed = block.ln_1(x)
    projected = block.attn.c_attn(normed)
    rotary = config.positional_encoder == "rotary"
    turn = rotated if rotary else (lambda vector, position: vector)
    mixed = torch.zeros_like(x)
    for head in range(config.n_head):
        part = slice(head * size, (head + 1) * size)
        q, k, v = (projected[:, i * width : (i + 1) * width][:, part] for i in range(3))
        history[head] += [(turn(k[t], t), v[t], t) for t in range(n_tokens)]
        for t in range(n_tokens):
            window = config.attention_window_length or n_tokens
            seen = [(key, value) for key, value, s in history[head] if t - window < s <= t]
            scores = torch.stack([turn(q[t], t) @ key / math.sqrt(size) for key, _ in seen])
            weights = scores.softmax(0)
            mixed[t, part] = sum(weight * value for weight, (_, value) in zip(weights, seen, strict=True))
    x = x + block.attn.c_proj(mixed)
    hidden = block.mlp.c_fc(block.ln_2(x))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + block.mlp.c_proj(hidden)


def reference_logits(network, ids):
    """The whole model on one sequence of ids, variant by variant, as the paper's text says it."""
    config = network.config
    body = network.transformer

    def empty():
        return [[] for _ in range(config.n_head)]

    x = body.wte.weight[ids]
    for block in body.h_begin:
        x = reference_block(block, x, config, empty())
    if config.model == "base":
        for block in body.h:
            x = reference_block(block, x, config, empty())
    else:
        kept = [empty() for _ in body.h_mid]
        for r in range(1, config.n_repeat + 1):
            if network.depth_emb is not None:
                remaining, table = config.n_repeat - r, network.depth_emb.embs.weight
                x = x + (
                    table[0] * remaining if config.depth_embedding == "linear_learned" else table[remaining]
                )
            for index, block in enumerate(body.h_mid):
                history = kept[index] if config.model.startswith("cotformer") else empty()
                x = reference_block(block, x, config, history)
            if config.has_ln_mid:
                x = body.ln_mid(x)
    for block in body.h_end:
        x = reference_block(block, x, config, empty())
    return body.ln_f(x) @ body.wte.weight.T


LN = "cotformer_full_depth_lnmid_depthemb"
VARIANTS = [
    ("base", {}),
    ("base", {"bias": True, "positional_encoder": "none"}),
    ("but_full_depth", RESERVED),
    ("cotformer_full_depth", {}),
    ("cotformer_full_depth", {**RESERVED, "attention_window_length": 4}),
    ("base", {"attention_window_length": 3}),
    *(
        (LN, {**RESERVED, "depth_embedding": embedding, "disable_ln_mid": disabled, "bias": disabled})
        for embedding, disabled in itertools.product((None, "linear_learned", "learned"), (False, True))
    ),
]


@pytest.mark.parametrize(("model", "fields"), VARIANTS)
def test_forward_and_backward_equal_the_reference(model, fields, device):
    network = make(model, device, **fields)
    ids, targets = torch.randint(0, 31, (2, 9)).to(device)
    output = network(ids[None], targets[None], get_logits=True)
    expected = reference_logits(network, ids)
    torch.testing.assert_close(output["logits"][0], expected, atol=1e-9, rtol=1e-9)
    loss = -expected.log_softmax(-1)[torch.arange(9), targets].mean()
    assert output["loss"].item() == pytest.approx(loss.item(), rel=1e-12)

    weights = list(network.parameters())
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad((output["logits"][0] * direction).sum(), weights, retain_graph=True)
    theirs = torch.autograd.grad((expected * direction).sum(), weights)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-8, rtol=1e-8)


ALL = ["base", "but_full_depth", "cotformer_full_depth", LN, "mla_ln_cotformer", "pause"]


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("window", [None, 3])
def test_causality_by_perturbation(model, window):
    """Changing a token changes nothing before it, and something at it and after it."""
    network = make(model, attention_window_length=window, depth_embedding="learned")
    ids = torch.randint(0, 31, (1, 9))
    before = network(ids, ids, get_logits=True)["logits"]
    for place in range(9):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 31
        difference = (network(changed, ids, get_logits=True)["logits"] - before).abs().amax(-1)[0]
        assert not difference[:place].any()
        assert difference[place] > 0
        if window is None:
            assert (difference[place:] > 0).all()


@pytest.mark.parametrize("model", ALL)
def test_sequences_of_a_batch_do_not_see_each_other(model):
    network = make(model)
    ids = torch.randint(0, 31, (5, 9))
    together = network(ids, ids, get_logits=True)["logits"]
    for row in range(5):
        alone = network(ids[row : row + 1], ids[row : row + 1], get_logits=True)["logits"][0]
        torch.testing.assert_close(together[row], alone, atol=1e-12, rtol=1e-12)


def test_one_repeat_is_the_standard_transformer():
    """With n_repeat = 1 CoTFormer, BUT and the standard transformer compute the same, to the last bit."""
    ids = torch.randint(0, 31, (2, 9))
    standard = make("base")
    logits = standard(ids, ids, get_logits=True)["logits"]
    weights = {
        name.replace("transformer.h.", "transformer.h_mid."): w for name, w in standard.state_dict().items()
    }
    for model in ("but_full_depth", "cotformer_full_depth"):
        network = make(model, n_repeat=1)
        network.load_state_dict(weights)
        assert torch.equal(network(ids, ids, get_logits=True)["logits"], logits)


def test_repeating_without_attending_back_differs():
    """Cross-repeat attention is not a no-op: CoTFormer and BUT with the same weights disagree."""
    cot, but = make("cotformer_full_depth"), make("but_full_depth")
    but.load_state_dict(cot.state_dict())
    ids = torch.randint(0, 31, (1, 9))
    assert (cot(ids, get_logits=True)["logits"] - but(ids, get_logits=True)["logits"]).abs().max() > 1e-3


@pytest.mark.parametrize("repeats", [1, 2, 7])
def test_any_number_of_repeats(repeats):
    network = make(LN, n_repeat=repeats, depth_embedding="learned", **RESERVED)
    ids = torch.randint(0, 31, (1, 9))
    torch.testing.assert_close(
        network(ids, ids, get_logits=True)["logits"][0],
        reference_logits(network, ids[0]),
        atol=1e-9,
        rtol=1e-9,
    )
    assert network(ids)["average_depth"] == 2 * repeats + 2


class EveryOther:
    """Passes that attend in turn to all passes so far and to themselves."""

    def __call__(self, x, tokens, middle, cache):
        for repeat in range(1, middle.n_repeat + 1):
            x = middle.run_pass(x, tokens, middle.keys(cache, repeat, all_passes=repeat % 2 == 1))
        return RepeaterOutput([x], [tokens] * middle.n_repeat, [])


def test_passes_that_see_all_need_the_keys_of_all():
    """Without a cache, keys of passes that see themselves alone are not kept; with one they would be seen."""
    network = make("cotformer", n_repeat=3)
    network.repeater = EveryOther()
    with pytest.raises(ValueError, match="pass 3 attends to all passes, but an earlier one"):
        network(torch.zeros(1, 4, dtype=torch.long), get_logits=True)

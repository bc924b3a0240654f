"""Routed and halting models against slow references, and what routing may look at.

The references go token by token, pass by pass, and never drop, pad or reorder rows.
"""

import math

import pytest
import torch

from models.capacities import tokens_per_pass
from models.halting import geometric, halting_distribution, ponder_divergence, sampled_exits
from tests.models.reference import RESERVED, make, rotated

ROUTED = ["adm", "adaptive_but"]
FACTORS = [None, [1.0, 0.5], [0.6, 0.3], [0.45, 0.0], [0.0, 0.0]]
THRESHOLDS = [[0.0, 0.0], [0.57, 0.45], [0.5, 0.46], [0.58, 0.2], [2.0, 2.0]]


def attend(block, query_of, t, sources, config):
    """One token's block output. sources: (normed representation, position) of all that it may see."""
    width, size = config.n_embd, config.n_embd // config.n_head
    weight = block.attn.c_attn.weight
    mixed = []
    for head in range(config.n_head):
        part = slice(head * size, (head + 1) * size)
        q = rotated((weight[:width] @ block.ln_1(query_of))[part], t)
        keys = [rotated((weight[width : 2 * width] @ x)[part], s) for x, s in sources]
        values = [(weight[2 * width :] @ x)[part] for x, _ in sources]
        weights = torch.stack([q @ key / math.sqrt(size) for key in keys]).softmax(0)
        mixed.append(sum(w * value for w, value in zip(weights, values, strict=True)))
    x = query_of + block.attn.c_proj(torch.cat(mixed))
    return x + block.mlp(block.ln_2(x))


def causal_block(block, x, config):
    """x: list of (C,), each attends to all before it."""
    normed = [block.ln_1(part) for part in x]
    return [attend(block, x[t], t, [(normed[s], s) for s in range(t + 1)], config) for t in range(len(x))]


def chosen(scores, present, count, threshold):
    if threshold is not None:
        return [t for t in present if scores[t] >= threshold]
    return sorted(sorted(present, key=lambda t: -scores[t])[:count])


def reference(network, ids, factors=None, thresholds=None):
    """Logits (T, V) and the passes of each token, as Section 4 and NOTES.md describe them."""
    config, body = network.config, network.transformer
    x = list(body.wte.weight[ids])
    for block in body.h_begin:
        x = causal_block(block, x, config)
    counts = tokens_per_pass(len(x), 3, factors, config.variant.single_precision_capacities)
    present, weight, passes = list(range(len(x))), {}, [0] * len(x)
    history = [[] for _ in body.h_mid]
    for r in range(1, config.n_repeat + 1):
        entering = list(x)
        depth = network.depth_emb.embs.weight[0] * (config.n_repeat - r)
        for t in present:
            passes[t] += 1
        if config.variant.sees_all_passes:
            now = {t: x[t] + depth for t in present}
            for kept, block in zip(history, body.h_mid, strict=True):
                kept += [(block.ln_1(now[t]), t) for t in present]
                now = {
                    t: attend(block, now[t], t, [(k, s) for k, s in kept if s <= t], config) for t in present
                }
        else:
            all_rows = [part + depth for part in x]
            for block in body.h_mid:
                everyone = causal_block(block, all_rows, config)
                all_rows = [everyone[t] if t in present else entering[t] for t in range(len(x))]
            now = {t: all_rows[t] for t in present}
        for t in present:
            after = body.ln_mid(now[t])
            x[t] = after if r == 1 else (1 - weight[t]) * entering[t] + weight[t] * after
        if r < config.n_repeat:
            weight = {t: network.transformer["mod"][r - 1].mod_router(x[t]).sigmoid()[0] for t in present}
            present = chosen(weight, present, counts[r], thresholds and thresholds[r - 1])
    for block in body.h_end:
        x = causal_block(block, x, config)
    return body.ln_f(torch.stack(x)) @ body.wte.weight.T, passes


def assert_equal_forward_and_backward(network, ids, expected, passes, **routing):
    output = network(ids[None], ids[None], get_logits=True, get_routing=True, **routing)
    torch.testing.assert_close(output["logits"][0], expected, atol=1e-9, rtol=1e-9)
    assert output["passes"][0].tolist() == passes
    assert output["tokens_per_pass"] == [float(sum(p >= r for p in passes)) for r in (1, 2, 3)]
    weights = list(network.parameters())
    direction = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((logits * direction).sum(), weights, retain_graph=True, allow_unused=True)
        for logits in (output["logits"][0], expected)
    )
    for mine, reference_gradient in zip(ours, theirs, strict=True):
        if reference_gradient is None:  # a router that admitted nobody still has a gradient, of zero
            assert mine is None or not mine.any()
            continue
        torch.testing.assert_close(mine, reference_gradient, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("model", ROUTED)
@pytest.mark.parametrize("routing", [*FACTORS, *THRESHOLDS], ids=str)
def test_mixture_of_repeats_equals_the_reference(model, routing):
    network = make(model, depth_embedding="linear_learned", **RESERVED)
    ids = torch.randint(0, 31, (9,))
    name = "thresholds" if routing in THRESHOLDS else "length_factors"
    expected = reference(network, ids, **{"factors" if name == "length_factors" else "thresholds": routing})
    assert_equal_forward_and_backward(network, ids, *expected, **{name: routing})


def stick_breaking_reference(network, ids):
    """Logits, passes and the ACT loss, per token, as NOTES.md section 4 describes them."""
    config, body = network.config, network.transformer
    x = list(body.wte.weight[ids])
    for block in body.h_begin:
        x = causal_block(block, x, config)
    n = len(x)
    fixed, going = [torch.zeros_like(part) for part in x], [torch.ones(()).double()] * n
    never, final, passes = [torch.ones(()).double()] * n, [False] * n, [0] * n
    act = 0.0
    for r in range(1, config.n_repeat + 1):
        now = list(x)
        for block in body.h_mid:
            offered = [block.ln_1(fixed[t] + going[t] * now[t]) for t in range(n)]
            now = [
                attend(block, now[t], t, [(offered[s], s) for s in range(t + 1)], config) for t in range(n)
            ]
            # A halted token's running mixture has nothing left of what moves.
        x = [x[t] if final[t] else now[t] for t in range(n)]
        for t in range(n):
            go, halt = network.depth_predictor._gate(x[t]).log_softmax(-1)
            if not final[t]:
                passes[t] += 1
                act = act + r * never[t] * halt.exp()
            never[t] = never[t] * go.exp()
            if not final[t]:
                final[t] = bool(never[t] < 1 - config.halt_threshold) or r == config.n_repeat
                left = torch.zeros(()).double() if final[t] else never[t]
                fixed[t] = fixed[t] + (going[t] - left) * x[t]
                going[t] = left
    act = (act + (config.n_repeat + 1) * sum(never)) / n
    for block in body.h_end:
        x = causal_block(block, x, config)
    return body.ln_f(torch.stack(x)) @ body.wte.weight.T, passes, act


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.999])
def test_stick_breaking_equals_the_reference(threshold):
    network = make("stick_breaking", halt_threshold=threshold, depth_predictor_loss_coef=0.5, **RESERVED)
    ids = torch.randint(0, 31, (9,))
    logits, passes, act = stick_breaking_reference(network, ids)
    assert_equal_forward_and_backward(network, ids, logits, passes)
    network.train()
    output = network(ids[None], ids[None])
    penalty = (output["loss"] - output["cross_entropy_loss"]).item()
    assert penalty == pytest.approx(0.5 * act.item(), rel=1e-9)
    network.zero_grad()
    (output["loss"] - output["cross_entropy_loss"]).backward()
    ours = [parameter.grad for parameter in network.depth_predictor.parameters()]
    theirs = torch.autograd.grad(0.5 * act, list(network.depth_predictor.parameters()))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-9, rtol=1e-9)


def test_the_penalty_of_stick_breaking_is_per_token_unless_asked():
    """The released code's sum starts hundreds of times too strong at its batch sizes."""
    ids = torch.randint(0, 31, (4, 9))
    penalties = {}
    for reduction in ("mean", "sum"):
        network = make("stick_breaking", act_loss_reduction=reduction).train()
        output = network(ids, ids)
        penalties[reduction] = (output["loss"] - output["cross_entropy_loss"]).item()
    assert penalties["sum"] == pytest.approx(4 * 9 * penalties["mean"])
    assert penalties["mean"] < 0.03 * 4


@pytest.mark.parametrize("model", ["adm", "adaptive_but"])
def test_thresholds_look_at_nothing_later(model):
    """Changing a token changes no decision, score or logit before it, under any budget; top-k does."""
    network = make(model, depth_embedding="learned", **RESERVED)
    torch.manual_seed(0)
    ids = torch.randint(0, 31, (4, 9))

    def changes(**routing):
        before = network(ids, ids, get_logits=True, get_routing=True, **routing)
        earlier = 0
        for place in range(9):
            other = ids.clone()
            other[:, place] = (ids[:, place] + 1) % 31
            after = network(other, ids, get_logits=True, get_routing=True, **routing)
            earlier += (after["passes"] != before["passes"])[:, :place].sum().item()
            # Other shapes may round otherwise; what is later may not do more than that.
            earlier += ((after["logits"] - before["logits"]).abs() > 1e-9)[:, :place].sum().item()
            scores = [run["router_scores"].nan_to_num(-1.0) for run in (before, after)]
            earlier += ((scores[0] - scores[1]).abs() > 1e-6)[:, :, :place].sum().item()
        return earlier

    for thresholds in THRESHOLDS:
        assert changes(thresholds=thresholds) == 0
    assert changes(length_factors=[0.6, 0.3]) > 0
    assert changes(length_factors=[1.0, 1.0]) == 0


@pytest.mark.parametrize("model", ["adm", "adaptive_but", "stick_breaking"])
def test_sequences_with_different_numbers_of_tokens_do_not_disturb_each_other(model):
    network = make(model, depth_embedding="learned", halt_threshold=0.7, attention_window_length=4)
    ids = torch.randint(0, 31, (6, 9))
    settings = {"thresholds": [0.57, 0.45]} if network.config.variant.routed else {}
    together = network(ids, ids, get_logits=True, get_routing=True, **settings)
    assert len(set(together["passes"].sum(1).tolist())) > 1, "the sequences should differ in depth"
    for row in range(6):
        alone = network(ids[row : row + 1], ids[row : row + 1], get_logits=True, **settings)["logits"][0]
        torch.testing.assert_close(together["logits"][row], alone, atol=1e-12, rtol=1e-12)


def test_flags_choose_the_routing_of_evaluation():
    ids = torch.randint(0, 31, (2, 9))
    plain = make("adm")
    asked = {
        "eval_length_factor": plain(ids, length_factors=[0.6, 0.3], get_routing=True),
        "routing_threshold": plain(ids, thresholds=[0.6, 0.3], get_routing=True),
    }
    for name, expected in asked.items():
        routing = "threshold" if name == "routing_threshold" else "topk"
        network = make("adm", **{name: [0.6, 0.3], "routing": routing})
        assert torch.equal(network(ids, get_routing=True)["passes"], expected["passes"])


def test_half_precision_scores_do_not_tie():
    """Under bfloat16 the router works in float32: 256 tokens keep 256 different scores."""
    network = make("adm", sequence_length=256).float()
    ids = torch.randint(0, 31, (1, 256))
    with torch.autocast("cpu", torch.bfloat16):
        scores = network(ids, get_routing=True)["router_scores"]
    assert scores[0, 0].unique().numel() > 200


def test_halting_distribution_by_hand():
    p = halting_distribution(torch.tensor([[0.25], [0.5], [1.0]]))
    assert p[:, 0].tolist() == [0.25, 0.375, 0.375, 0.0]
    assert halting_distribution(torch.tensor([[0.0], [0.0]]))[:, 0].tolist() == [0.0, 0.0, 1.0]


def test_the_halting_distribution_is_a_cumulative_product():
    """Also backward, where a gate is closed (1 - lambda = 0) too."""
    lambdas = torch.tensor([[0.3, 0.0, 1.0], [0.6, 1.0, 0.2], [0.5, 0.4, 0.9]]).double().requires_grad_()
    going = torch.cat((torch.ones_like(lambdas[:1]), (1.0 - lambdas).cumprod(0)))
    expected = torch.cat((lambdas * going[:-1], going[-1:]))
    torch.testing.assert_close(halting_distribution(lambdas), expected)
    direction = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((p * direction).sum(), lambdas) for p in (halting_distribution(lambdas), expected)
    )
    torch.testing.assert_close(ours[0], theirs[0])
    assert torch.autograd.gradcheck(halting_distribution, (lambdas,))


def test_prior_and_divergence_by_hand():
    assert geometric(0.4, 3).tolist() == pytest.approx([0.4, 0.24, 0.36])
    p = torch.tensor([[0.5], [0.25], [0.25]])
    expected = 0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.24) + 0.25 * math.log(0.25 / 0.36)
    assert ponder_divergence(p, 0.4).item() == pytest.approx(expected, abs=1e-6)
    assert ponder_divergence(geometric(0.4, 3)[:, None], 0.4).item() == pytest.approx(0.0, abs=1e-12)


def test_sampled_exits_follow_the_distribution():
    torch.manual_seed(0)
    lambdas = torch.tensor([0.3, 0.5]).view(2, 1, 1).expand(2, 200, 200)
    exits = sampled_exits(lambdas)
    assert ((exits == 0) | (exits == 1)).all() and (exits.sum(0) == 1).all()
    assert exits.mean((1, 2)).tolist() == pytest.approx([0.3, 0.35, 0.35], abs=0.01)


def test_ponder_predictions_are_the_mixture_over_exits():
    """Normalised, and never worse than the expected loss (Jensen)."""
    network = make("pondernet", **RESERVED)
    ids = torch.randint(0, 31, (3, 9))
    output = network(ids, ids, get_logits=True)
    torch.testing.assert_close(output["logits"].exp().sum(-1), torch.ones(3, 9).double())
    mixture = torch.nn.functional.cross_entropy(output["logits"].flatten(0, 1), ids.flatten())
    assert mixture.item() < output["cross_entropy_loss"].item()


def test_a_single_pass_needs_no_decision():
    ids = torch.randint(0, 31, (2, 9))
    for model in ("adm", "adaptive_but", "pondernet", "stick_breaking"):
        network = make(model, n_repeat=1).train()
        network(ids, ids)["loss"].backward()
        assert network.eval()(ids)["average_depth"] == 4


def test_top_k_of_padded_sequences_counts_the_tokens_that_count():
    network, idx = make("adm", **RESERVED), torch.randint(0, 31, (2, 9))
    padded = network(idx, length_factors=[0.7, 0.5], lengths=[5, 5])
    alone = network(idx[:, :5], length_factors=[0.7, 0.5])
    assert padded["tokens_per_pass"] == alone["tokens_per_pass"] == [5, 3, 2]

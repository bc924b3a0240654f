"""Drawing tokens."""

import pytest
import torch

import models
from models import graphed_decoding
from models.config import ModelConfig
from models.generation import generate, next_token_probabilities
from models.language_model import LanguageModel
from models.variants import VARIANTS

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_probabilities_by_hand(settings, expected):
    torch.testing.assert_close(next_token_probabilities(LOGITS, **settings), torch.tensor([expected]).float())


def test_the_nucleus_of_many_tokens_is_the_smallest_that_suffices():
    probabilities = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)).softmax(-1)
    kept = next_token_probabilities(probabilities.log(), top_p=0.7)
    for before, after in zip(probabilities, kept, strict=True):
        inside = before[after > 0]
        assert inside.min() > before[after == 0].max()
        assert inside.sum() >= 0.7 - 1e-6 and inside.sum() - inside.min() < 0.7 + 1e-6
        torch.testing.assert_close(after[after > 0], inside / inside.sum())


# adaptive_but_macs computes what adaptive_but does.
@pytest.fixture(params=[variant.name for variant in VARIANTS if variant.alias != "adaptive_but_macs"])
def name(request):
    return request.param


LIMIT = 12


def build(name, dtype=torch.float64, device="cpu", **fields):
    """A network whose weights are large enough that tokens differ in what they do."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 31, "sequence_length": LIMIT, "n_layer": 4, "n_head": 2, "n_embd": 12}
    repeats = {"n_repeat": 3, "n_layer_begin": 1, "n_layer_end": 1}
    parts = {"depth_embedding": "linear_learned", "halt_threshold": 0.6}
    config = ModelConfig(model=name, **{**sizes, **repeats, **parts, **fields})
    network = LanguageModel(config).to(dtype).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network.to(device)


def budgets(network):
    """Thresholds to try; other models have one way only."""
    return [None, [0.5, 0.5], [0.3, 0.6], [2.0, 2.0]] if network.config.variant.routed else [None]


def steps(network, prompts, n=30, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return list(generate(network, prompts, n, generator=generator, **settings))


def text(network, prompts, **settings):
    """(B, n) ids."""
    return torch.stack([step.tokens for step in steps(network, prompts, **settings)], dim=1)


PROMPTS = {
    "one": [[3, 1, 4, 1, 5]],
    "even": [[3, 1, 4], [1, 5, 9]],
    "uneven": [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5], [8] * LIMIT],
    "long": [list(range(20)), [7, 7]],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_the_cache_gives_the_tokens_of_full_recomputation(name, prompts, device):
    """In float64, drawn tokens and passes alike, through prefill, decoding and the cut of a full context."""
    network = build(name, device=device)
    for thresholds in budgets(network):
        cached, plain = (steps(network, prompts, cached=on, thresholds=thresholds) for on in (True, False))
        for ours, reference in zip(cached, plain, strict=True):
            assert torch.equal(ours.tokens, reference.tokens)
            assert torch.equal(ours.passes, reference.passes)


@pytest.mark.parametrize("window", [None, 5])
def test_decoding_at_fixed_shapes_gives_the_same_text(name, window, device, monkeypatch):
    """In float64, also from prompts, thresholds and models for which it is not used."""
    monkeypatch.setattr(graphed_decoding, "FEWEST_PLACES", 4)
    monkeypatch.setattr(graphed_decoding.GraphedDecoder, "run", counted(graphed_decoding.GraphedDecoder.run))
    network = build(name, device=device, attention_window_length=window)
    for prompts in PROMPTS.values():
        for thresholds in budgets(network)[:2]:
            plain = steps(network, prompts, n=15, thresholds=thresholds)
            before = counted.calls
            fixed = steps(network, prompts, n=15, thresholds=thresholds, graphed=True)
            halts = thresholds or network.config.variant.has_halting_gate
            assert (counted.calls > before) == (len(set(map(len, prompts))) == 1 and not halts)
            for ours, reference in zip(fixed, plain, strict=True):
                assert torch.equal(ours.tokens, reference.tokens)
                assert torch.equal(ours.passes, reference.passes)


def counted(function):
    """`function`; counted.calls says how often such functions were called."""

    def wrapper(*args):
        counted.calls += 1
        return function(*args)

    return wrapper


counted.calls = 0


def test_a_step_at_fixed_shapes_can_be_repeated(name, device):
    """As it is when a graph is captured."""
    network = build(name, device=device)
    if not graphed_decoding.has_fixed_shapes(network, None):
        pytest.skip("its tokens halt")
    decoder = graphed_decoding.GraphedDecoder(network, 2, None)
    with torch.no_grad():
        network(torch.randint(0, 31, (2, 5)).to(device), cache=decoder.cache)
        first = decoder(torch.tensor([[3], [4]]))["logits"].clone()
        assert torch.equal(decoder.run()["logits"], first)
        assert not torch.equal(decoder(torch.tensor([[3], [4]]))["logits"], first)


@pytest.mark.parametrize("window", [None, 5])
def test_logits_of_decoding_equal_those_of_one_forward_pass(name, window, device):
    """In float32 within 1e-4, token by token and in chunks."""
    network = build(name, torch.float32, device, attention_window_length=window)
    idx = torch.randint(0, 31, (3, LIMIT)).to(device)
    for thresholds in budgets(network):
        full = network(idx, idx, get_logits=True, thresholds=thresholds)["logits"].log_softmax(-1)
        for chunks in ([LIMIT], [1] * LIMIT, [4, 3, 1, 4]):
            cache, place = network.new_cache(3), 0
            for size in chunks:
                place += size
                new = idx[:, place - size : place]
                with torch.no_grad():
                    logits = network(new, get_logits=True, cache=cache, thresholds=thresholds)["logits"]
                ours = logits[:, 0].log_softmax(-1)
                torch.testing.assert_close(ours, full[:, place - 1], atol=1e-4, rtol=0)


def test_uneven_prompts_are_written_as_if_each_were_alone(name, device):
    network = build(name, device=device)
    for thresholds in budgets(network):
        settings = {"temperature": 0, "thresholds": thresholds}
        together = text(network, PROMPTS["uneven"], **settings)
        for row, prompt in zip(together, PROMPTS["uneven"], strict=True):
            assert torch.equal(text(network, [prompt], **settings)[0], row)


def test_greedy_equals_running_the_model_on_the_last_tokens():
    """The window of the released code: the last `sequence_length` tokens, for each token anew."""
    network = build("cotformer")
    idx = torch.randint(0, 31, (2, 3))
    for cached in (True, False):
        drawn = text(network, idx, temperature=0, keep=LIMIT, cached=cached)
        context = idx
        for step in range(30):
            logits = network(context[:, -LIMIT:], get_logits=True)["logits"][:, -1]
            assert torch.equal(logits.argmax(-1), drawn[:, step])
            context = torch.cat((context, drawn[:, step : step + 1]), dim=1)


@pytest.mark.parametrize(("keep", "expected"), [(None, 6), (4, 4), (12, 12), (1, 1)])
def test_a_full_context_is_cut_to_its_last_tokens(keep, expected, monkeypatch):
    network = build("but")
    fed = []
    forward = network.forward

    def watched(idx, **settings):
        fed.append(idx.shape[1])
        return forward(idx, **settings)

    monkeypatch.setattr(network, "forward", watched)
    steps(network, [[1, 2, 3]], n=11, keep=keep)
    assert fed == [3, *[1] * 9, expected]


def test_a_halted_token_takes_no_place_in_the_cache():
    network = build("adm")
    sizes = {}
    for thresholds in ([0.0, 0.0], [2.0, 2.0]):
        cache = network.new_cache(1)
        with torch.no_grad():
            network(torch.randint(0, 31, (1, 8)), cache=cache, thresholds=thresholds)
        sizes[thresholds[0]] = cache.bytes_per_token
    layer = 2 * 12 * 8  # keys and values of float64
    assert sizes == {0.0: (1 + 2 * 3 + 1) * layer, 2.0: (1 + 2 + 1) * layer}


def test_size_of_a_cache_is_known_in_advance(name):
    network = build(name)
    cache = network.new_cache(2)
    with torch.no_grad():
        network(torch.randint(0, 31, (2, 8)), cache=cache)
    assert cache.bytes_per_token == models.cache_bytes_per_token(network.config, torch.float64)


def test_a_cache_is_not_written_beyond_its_end():
    network = build("base")
    cache = network.new_cache(1)
    network(torch.zeros(1, LIMIT, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="the cache holds 12 tokens a sequence, not 13"):
        network(torch.zeros(1, 1, dtype=torch.long), cache=cache)


@pytest.mark.parametrize("temperature", [1e-20, 1e-42, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.tensor([[3.0, -2.0, 3.5], [-40.0, 12.0, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert torch.equal(next_token_probabilities(logits, temperature), expected)


def test_a_seed_means_one_text():
    network = build("cotformer")
    assert torch.equal(text(network, [[0]], seed=5), text(network, [[0]], seed=5))
    assert not torch.equal(text(network, [[0]], seed=5), text(network, [[0]], seed=6))


def test_padding_of_the_vocabulary_is_never_drawn():
    assert text(build("cotformer"), [[0]], n=200, n_tokens=7, temperature=5.0).max() < 7


def test_the_training_mode_is_left_as_it_was():
    network = build("cotformer").train()
    drawn = generate(network, [[0]], 5)
    next(drawn)
    drawn.close()  # abandoned half-way
    assert network.training

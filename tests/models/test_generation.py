"""Drawing tokens."""

import pytest
import torch

from models.config import ModelConfig
from models.generation import generate, next_token_probabilities
from models.language_model import LanguageModel

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


@pytest.fixture
def network():
    torch.manual_seed(3)
    config = ModelConfig(model="cotformer", vocab_size=50, sequence_length=8, n_layer=2, n_head=2, n_embd=16)
    return LanguageModel(config)


def text(network, prompt, n=20, seed=0, **settings):
    drawn = generate(network, prompt, n, generator=torch.Generator().manual_seed(seed), **settings)
    return torch.cat(list(drawn), dim=1)


def test_greedy_equals_running_the_model_on_the_last_tokens(network):
    idx = torch.randint(0, 50, (2, 3))
    drawn = text(network, idx, temperature=0)
    for step in range(20):
        logits = network.eval()(idx[:, -8:], get_logits=True)["logits"][:, -1]
        assert torch.equal(logits.argmax(-1), drawn[:, step])
        idx = torch.cat((idx, drawn[:, step : step + 1]), dim=1)


def test_a_seed_means_one_text(network):
    prompt = torch.zeros(1, 1, dtype=torch.long)
    assert torch.equal(text(network, prompt, seed=5), text(network, prompt, seed=5))
    assert not torch.equal(text(network, prompt, seed=5), text(network, prompt, seed=6))


def test_padding_of_the_vocabulary_is_never_drawn(network):
    assert text(network, torch.zeros(1, 1, dtype=torch.long), n=200, n_tokens=7, temperature=5.0).max() < 7


def test_the_training_mode_is_left_as_it_was(network):
    network.train()
    drawn = generate(network, torch.zeros(1, 1, dtype=torch.long), 5)
    next(drawn)
    drawn.close()  # abandoned half-way
    assert network.training

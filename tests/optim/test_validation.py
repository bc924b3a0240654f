"""Figures of an evaluation, by hand."""

import math

import pytest
import torch
from torch import nn

from distributed import choose_precision
from errors import Failure
from optim.validation import Evaluation, evaluate, to_perplexity
from tests.models.reference import make

FLOAT32 = choose_precision("torch.float32", torch.device("cpu"))


def test_a_smaller_last_batch_counts_by_its_tokens():
    result = Evaluation([1.0, 2.0, 3.0, 9.0], [10, 10, 10, 1], correct_tokens=8, average_depth=5.0)
    assert result.loss == pytest.approx((10 + 20 + 30 + 9) / 31)
    assert result.perplexity == pytest.approx(math.exp(69 / 31))
    assert result.accuracy == pytest.approx(8 / 31)
    error = 1.0 / math.sqrt(3)  # of the three full batches: standard deviation 1
    assert result.loss_standard_error == pytest.approx(error)
    assert result.loss_interval == pytest.approx([69 / 31 - 1.96 * error, 69 / 31 + 1.96 * error])
    assert result.perplexity_interval == pytest.approx([math.exp(bound) for bound in result.loss_interval])


def test_one_batch_has_no_interval():
    result = Evaluation([1.0], [10], correct_tokens=1, average_depth=1.0)
    assert result.loss_standard_error is result.loss_interval is result.perplexity_interval is None


def test_a_huge_loss_has_infinite_perplexity():
    assert to_perplexity(1e4) == math.inf


class Table(nn.Module):
    """Logits looked up by token: losses and first choices are known."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, idx, targets, get_predictions):
        assert not self.training
        logits = self.rows[idx]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return {
            "predictions": logits.argmax(-1), "cross_entropy_loss": loss, "average_depth": 3.0,
            "tokens_per_pass": [4.0, 2.0],
        }  # fmt: skip


def test_evaluating_a_known_model():
    model = Table([[0.0, 0.0], [math.log(3.0), 0.0]])
    ids = torch.tensor([[0, 1, 1, 0]])
    targets = torch.tensor([[0, 0, 1, 0]])
    result = evaluate(model, [(ids, targets)], FLOAT32)
    expected = (math.log(2) + math.log(4 / 3) + math.log(4) + math.log(2)) / 4
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert (result.tokens, result.correct_tokens, result.average_depth) == (4, 3, 3.0)
    assert model.training  # as it was before


def test_nothing_to_evaluate_and_losses_that_are_no_numbers():
    with pytest.raises(Failure, match="nothing to evaluate on"):
        evaluate(Table([[0.0, 0.0]]), [], FLOAT32)
    zeros = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(Failure, match="gives a loss of nan"):
        evaluate(Table([[math.nan, 0.0]]), [(zeros, zeros)], FLOAT32)


def test_targets_that_do_not_count():
    """Loss and accuracies are over the positions that are asked for; a batch weighs by their number."""
    model = Table([[0.0, 0.0], [math.log(3.0), 0.0]])
    first = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]), torch.tensor([[-1, 0, 1, -1], [0, -1, -1, 0]])
    second = torch.tensor([[1, 1, 1, 1]]), torch.tensor([[0, -1, -1, -1]])
    none = torch.tensor([[1, 1, 1, 1]]), torch.full((1, 4), -1)
    result = evaluate(model, [first, second, none], FLOAT32)
    expected = (math.log(4 / 3) + math.log(4) + math.log(4 / 3) + math.log(2) + math.log(4 / 3)) / 5
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert (result.tokens, result.correct_tokens) == (5, 4)
    assert result.sequence_accuracy == pytest.approx(3 / 4)
    assert result.seconds_per_token > 0


def test_drawn_exits_are_those_of_the_batch():
    """--ponder_eval sample: whatever was drawn before, and leaving the generator as it was."""
    network = make("pondernet", ponder_eval="sample").float()
    ids = torch.randint(0, 31, (4, 9))
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        losses.append(evaluate(network, [(ids[:2], ids[:2]), (ids[2:], ids[2:])], FLOAT32).batch_losses)
        assert torch.equal(state, torch.get_rng_state())
    assert losses[0] == losses[1]

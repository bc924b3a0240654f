"""Rows at distinct places: what runs in deterministic mode on CUDA, against PyTorch's own operations."""

import pytest
import torch

from models.active_tokens import ActiveTokens, InputGrid, _Replace, _Take, final_states, put_

PLACE = torch.tensor([1, 2, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.long])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_put_is_index_copy(shape, dtype):
    x, new = ((10 * torch.randn(count, *shape)).to(dtype) for count in (7, 3))  # of both signs
    if dtype.is_floating_point:
        new[0] = -torch.inf
    expected = x.index_copy(0, PLACE, new)
    assert torch.equal(put_(x, PLACE, new), expected) and torch.equal(x, expected)


@pytest.mark.parametrize("place", [PLACE, torch.arange(7), PLACE[:0]], ids=["some", "all", "none"])
def test_take_and_replace_are_index_select_and_index_copy(place):
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    new = torch.randn(len(place), 4, dtype=torch.float64, requires_grad=True)
    taken, replaced = _Take.apply(x, place), _Replace.apply(x, place, new)
    assert torch.equal(taken, x.index_select(0, place))
    assert torch.equal(replaced, x.index_copy(0, place, new))
    assert torch.autograd.gradcheck(lambda x: _Take.apply(x, place), x)
    assert torch.autograd.gradcheck(lambda x, new: _Replace.apply(x, place, new), (x, new))
    before, after = x.detach().clone(), torch.ones_like(x)
    replaced.backward(after)
    assert torch.equal(x, before) and after.all(), "neither the input nor a gradient is changed in place"


def tokens_at(index, counts, grid):
    return ActiveTokens(grid, torch.tensor(index), counts)


@pytest.mark.parametrize("first", [None, [0, 1, 3, 4, 5, 6, 7]], ids=["all", "some"])
def test_final_states_are_those_of_each_token_s_last_pass(first):
    grid = InputGrid(2, 4, torch.arange(4), None)
    tokens = ActiveTokens(grid) if first is None else tokens_at(first, [3, 4], grid)
    second, third = tokens_at([1, 4, 6, 7], [1, 3], grid), tokens_at([6], [0, 1], grid)
    passes = [tokens, second, third]
    by_pass = [(one, torch.full((*one.shape, 1), float(n))) for n, one in enumerate(passes, start=1)]
    expected = torch.tensor([1, 2, 1, 1, 2, 1, 3, 2])[tokens.flat_index]
    assert final_states(by_pass, tokens).flatten().tolist() == expected.tolist()
    assert tokens.flat_index[second.places_in(tokens)].tolist() == [1, 4, 6, 7]
    assert second.flat_index[third.places_in(second)].tolist() == [6]

"""Batches against a naive loader, written as loops."""

import threading
import time

import numpy as np
import pytest
import torch

from data.batches import (
    Batches,
    EvaluationBatches,
    MixedWindows,
    TokenWindows,
    contiguous_batches,
    prefetch,
    validation_subset,
)
from errors import Failure

TOKENS = (
    np.random.default_rng(0).integers(0, 60000, 83).astype(np.uint16)
)  # 16 windows of 5, and two left over
T = 5


def naive_window(index):
    x = [int(TOKENS[index * T + i]) for i in range(T)]
    y = [int(TOKENS[index * T + i + 1]) for i in range(T)]
    return x, y


def same(batch, windows):
    inputs, targets = batch
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == (len(windows), T)
    return [(x.tolist(), y.tolist()) for x, y in zip(inputs, targets, strict=True)] == list(
        map(naive_window, windows)
    )


def naive_order(batches, n_samples):
    """Window of each sample, in the order of steps and micro-batches."""
    order = []
    step = 0
    while len(order) < n_samples:
        for micro in range(2):
            order += batches.indices(step, micro).tolist()
        step += 1
    return order[:n_samples]


def windows():
    return TokenWindows([TOKENS], T)


def make(seed=1, batch_size=3):
    return Batches(windows(), batch_size=batch_size, acc_steps=2, seed=seed)


def test_content_of_batches():
    batches = make()
    for step in range(7):
        for micro in range(2):
            assert same(batches.get(step, micro), batches.indices(step, micro))


def test_each_epoch_is_a_fresh_permutation_of_all_windows():
    order = naive_order(make(), 16 * 4)
    epochs = [order[i : i + 16] for i in range(0, 64, 16)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_a_batch_is_a_function_of_its_place_alone():
    """Asked in any order, by any instance: restarts and the number of processes do not matter."""
    straight = [make().indices(step, micro).tolist() for step in range(12) for micro in range(2)]
    walked = make()
    assert straight == [walked.indices(step, micro).tolist() for step in range(12) for micro in range(2)]
    backwards = make()
    for step in reversed(range(12)):
        assert backwards.indices(step, 1).tolist() == straight[2 * step + 1]


def test_seeds_give_other_orders():
    assert naive_order(make(seed=1), 16) != naive_order(make(seed=2), 16)


def test_accumulation_sees_the_samples_of_one_large_batch():
    small, large = make(batch_size=2), Batches(windows(), batch_size=4, acc_steps=1, seed=1)
    for step in range(9):
        assert [*small.indices(step, 0), *small.indices(step, 1)] == large.indices(step, 0).tolist()


def test_a_batch_larger_than_the_corpus():
    batches = Batches(windows(), batch_size=40, acc_steps=1, seed=1)
    order = batches.indices(0, 0).tolist()
    assert sorted(order[:16]) == sorted(order[16:32]) == list(range(16)) and len(set(order[32:])) == 8


@pytest.mark.parametrize(
    ("batch_size", "limit", "expected"),
    [
        (4, None, [4, 4, 4, 4]),
        (5, None, [5, 5, 5, 1]),
        (3, 35, [3, 3, 1]),
        (3, 1, [1]),
        (3, 10**9, [3] * 5 + [1]),
    ],
)
def test_evaluation_windows_are_contiguous(batch_size, limit, expected):
    batches = contiguous_batches(windows(), batch_size, limit)
    assert len(batches) == len(expected)
    seen = 0
    for batch, size in zip(batches, expected, strict=True):
        assert same(batch, range(seen, seen + size))
        seen += size


def test_the_last_window_needs_its_target():
    assert TokenWindows([TOKENS[:11]], T).count == 2
    assert TokenWindows([TOKENS[:10]], T).count == 1


def test_validation_subset_is_fixed_and_spread():
    first, again, other = (
        [x.tolist() for x, _ in validation_subset(windows(), 2, n_batches=3, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(first) == 3 and len({tuple(row) for batch in first for row in batch}) == 6
    assert len(validation_subset(windows(), 4, n_batches=24, seed=1)) == 4  # the whole of a small set


def test_evaluation_batches_can_be_walked_twice():
    batches = EvaluationBatches(windows(), np.arange(4), 2)
    assert [x.tolist() for x, _ in batches] == [x.tolist() for x, _ in batches]


def test_prefetch_keeps_order_and_works_ahead():
    made = []

    def work(key):
        made.append(key)
        return key * key

    stream = prefetch(work, range(10), depth=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2]  # two ahead of what was taken, and no more
    assert [0, *stream] == [key * key for key in range(10)]


def test_prefetch_hands_on_errors_and_leaves_no_thread():
    def work(key):
        if key == 2:
            raise ValueError("the third")
        return key

    stream = prefetch(work, range(5))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(stream)
    abandoned = prefetch(work, range(2))
    next(abandoned)
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_damage_after_opening_is_named(tmp_path):
    """A mapped file whose content changes: the window that holds the damage is refused."""
    path = tmp_path / "train.bin"
    (TOKENS % 100).tofile(path)
    mapped = np.memmap(path, np.uint16, "r")
    every = [
        contiguous_batches(TokenWindows([mapped], T, vocab_size=100), 1),
        validation_subset(TokenWindows([mapped], T, vocab_size=100), 1, n_batches=16, seed=1),
    ]
    training = Batches(TokenWindows([mapped], T, vocab_size=100), batch_size=1, acc_steps=1, seed=1)
    for batches in every:
        assert len(list(batches)) == 16
    with open(path, "r+b") as file:
        file.seek(2 * (3 * T + 2))  # in window 3
        file.write(np.uint16(100).tobytes())
    for batches in every:
        with pytest.raises(Failure, match=r"train\.bin holds token 100, but the vocabulary has 100"):
            list(batches)
    for step in range(16):
        if training.indices(step, 0) == 3:
            with pytest.raises(Failure, match=r"train\.bin holds token 100"):
                training.get(step, 0)
        else:
            training.get(step, 0)


def test_no_window_reaches_from_one_file_into_the_next():
    """Against windows of each file by itself, in order."""
    files = [TOKENS[:23], TOKENS[23:30], TOKENS[30:]]
    several = TokenWindows(files, T)
    each = [TokenWindows([file], T) for file in files]
    assert several.count == sum(one.count for one in each) == 4 + 1 + 10
    expected = [one.gather(np.arange(one.count)) for one in each]
    inputs, targets = several.gather(np.arange(several.count))
    assert torch.equal(inputs, torch.cat([x for x, _ in expected]))
    assert torch.equal(targets, torch.cat([y for _, y in expected]))
    shuffled = np.array([14, 4, 0, 3, 5])
    assert torch.equal(several.gather(shuffled)[0], inputs[shuffled])


def test_a_mixture_keeps_its_weights_in_every_epoch():
    """16 and 40 windows at 3 to 1: the first is used up, of the second comes another part each time."""
    many = (np.arange(201) % 7 + 60000).astype(np.uint16)
    mixed = MixedWindows([windows(), TokenWindows([many], T)], [0.75, 0.25])
    assert (mixed.count, mixed.epoch_size) == (56, 16 + 5)
    batches = Batches(mixed, batch_size=7, acc_steps=1, seed=1)
    epochs = [[int(i) for step in range(3) for i in batches.indices(3 * e + step, 0)] for e in range(4)]
    for epoch in epochs:
        assert sorted(i for i in epoch if i < 16) == list(range(16)) and len(set(epoch)) == 21
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 4
    inputs, targets = mixed.gather(np.array([20, 3, 55, 0]))
    assert inputs[1].tolist() == naive_window(3)[0] and targets[3].tolist() == naive_window(0)[1]
    assert inputs[0].tolist() == many[20:25].tolist() and targets[2].tolist() == many[196:201].tolist()

"""Generated corpora: every answer against the definition, written out."""

import numpy as np
import pytest

from data import open_corpus
from data.algorithmic import IGNORE_INDEX, TASKS, hop_answers
from data.tokenizers import decode
from errors import Failure, UsageError


def samples(corpus, split, count=300, length=202):
    """(words of the input without padding, words of the answers or None)."""
    tokenizer = corpus.load_tokenizer()
    inputs, targets = corpus.windows(split, length).gather(np.arange(count))
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        words = [tokenizer.words[token] for token in x]
        n = len(words) - next((i for i, word in enumerate(reversed(words)) if word != "pad"), len(words))
        assert all(answer == IGNORE_INDEX for answer in y[n:])
        yield words[:n], [None if answer == IGNORE_INDEX else tokenizer.words[answer] for answer in y[:n]]


def count_naively(words):
    """What is due at each place of a sample of counting."""
    if words[0] == "begin" or "a" in words:
        number = 0 if words[0] == "begin" else int(words[0])
        due = [None]
        for word in words[1:]:
            assert word == "a"
            number += 1
            due.append(str(number))
        return due
    return [str(int(word) + 1) for word in words]


@pytest.mark.parametrize("split", TASKS["counting"].splits)
def test_counting(split):
    seen = list(samples(open_corpus("counting"), split))
    lengths = {len(words) - 1 for words, _ in seen if "a" in words}
    low, high = (51, 200) if split.endswith("_ood") else (1, 50)
    assert low <= min(lengths) < low + 5 and high - 5 < max(lengths) <= high
    for words, due in seen:
        assert count_naively(words) == due
        assert max(int(word) for word in due if word) <= 200
    starts = {words[0] == "begin" for words, _ in seen}
    assert starts == ({True} if "inductive" in split else {False} if "shifted" in split else {True, False})
    if split == "train":  # every number is seen as an answer, so that none is a new word later
        many = samples(open_corpus("counting"), split, 6000)
        assert {word for _, due in many for word in due if word} == set(map(str, range(1, 201)))


def hop_naively(letters, hops, place):
    for _ in range(hops):
        earlier = [j for j in range(1, place + 1) if letters[j - 1] == letters[place]]
        if not earlier:
            return IGNORE_INDEX
        place = max(earlier)
    return letters[place]


def test_hops_by_the_definition():
    assert hop_answers([3, 4, 3, 5, 4], 1) == [-1, -1, 4, -1, 3]
    assert hop_answers([3, 4, 3, 5, 4], 2) == [-1, -1, -1, -1, 4]
    generator = np.random.default_rng(0)
    for hops in range(1, 7):
        letters = generator.integers(0, 4, 60).tolist()
        assert hop_answers(letters, hops) == [hop_naively(letters, hops, place) for place in range(60)]


@pytest.mark.parametrize(
    ("split", "hops", "lengths"),
    [("train", (1, 4), (16, 64)), ("length_ood", (1, 4), (128, 128)), ("hops_ood", (5, 8), (64, 64))],
)
def test_phop(split, hops, lengths):
    seen = list(samples(open_corpus("phop"), split))
    found_hops, found_lengths = set(), set()
    for words, due in seen:
        p = words.index("begin")
        assert words[:p] == ["hop"] * p and due[: p + 1] == [None] * (p + 1)
        letters = ["abcd".index(word) for word in words[p + 1 :]]
        expected = [hop_naively(letters, p, place) for place in range(len(letters))]
        assert due[p + 1 :] == [None if answer == IGNORE_INDEX else "abcd"[answer] for answer in expected]
        found_hops.add(p)
        found_lengths.add(len(letters))
    assert (min(found_hops), max(found_hops)) == hops
    assert lengths[0] <= min(found_lengths) and max(found_lengths) <= lengths[1]


def test_a_sample_is_a_function_of_its_index():
    first, again = (open_corpus("phop").windows("train", 69) for _ in range(2))
    one, _ = first.gather(np.array([5, 7, 1_000_000]))
    other, _ = again.gather(np.array([1_000_000, 7]))
    assert one[2].tolist() == other[0].tolist() and one[1].tolist() == other[1].tolist()
    val, _ = first.gather(np.array([5]))
    assert open_corpus("phop").windows("val", 69).gather(np.array([5]))[0].tolist() != val.tolist()


def test_a_sequence_too_short_for_the_task_is_refused():
    with pytest.raises(Failure, match="takes up to 51 tokens; give --sequence_length 51"):
        open_corpus("counting").windows("train", 32)
    assert open_corpus("counting").windows("shifted_ood", 64).length == 201
    with pytest.raises(UsageError, match="generated in tokens of its own"):
        open_corpus("counting", tokenizer="gpt2")
    with pytest.raises(UsageError, match="has 204 tokens, more than --vocab_size 64; give --vocab_size 256"):
        open_corpus("counting", vocab_size=64)
    assert decode(open_corpus("phop").load_tokenizer(), [1, 2, 3]) == " hop begin a"

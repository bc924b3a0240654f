"""Text to ids and back."""

import os
import subprocess
import sys

import pytest

from data.tokenizers import (
    Bytes,
    Characters,
    StreamDecoder,
    decode,
    make_tokenizer,
    tokenizer_from_meta,
)
from errors import Failure, UsageError
from tests.conftest import ROOT, SHARED_DATA

MIXED = "Plain, naïve, 日本語, 🙂 and\n\ttabs. <|endoftext|>"
CACHE = SHARED_DATA / "tiktoken_cache"


@pytest.fixture(params=["bytes", "char", "gpt2"])
def tokenizer(request, monkeypatch):
    if request.param == "char":
        return Characters("".join(sorted(set(MIXED))))
    if request.param == "gpt2" and "TIKTOKEN_CACHE_DIR" not in os.environ:
        if not CACHE.exists():
            pytest.skip("GPT-2's vocabulary is not cached")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    return make_tokenizer(request.param)


def test_round_trip(tokenizer):
    ids = tokenizer.encode(MIXED)
    assert ids.max() < tokenizer.vocab_size and (
        tokenizer.end_of_text is None or tokenizer.end_of_text not in ids
    )
    assert decode(tokenizer, ids) == MIXED


def test_made_again_from_its_description(tokenizer):
    again = tokenizer_from_meta(tokenizer.to_meta())
    assert again.encode(MIXED).tolist() == tokenizer.encode(MIXED).tolist()
    assert again.vocab_size == tokenizer.vocab_size


def test_streaming_never_cuts_a_character(tokenizer):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(int(token)) for token in tokenizer.encode(MIXED)]
    assert "".join(pieces) + decoder.finish() == MIXED
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_is_shown_as_such():
    decoder = StreamDecoder(Bytes())
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.finish() == "\ufffd"


def test_end_of_text_is_shown_as_a_new_line(tokenizer):
    if tokenizer.end_of_text is not None:
        assert decode(tokenizer, [tokenizer.end_of_text]) == "\n"


def test_unknown_characters_and_tokenisers_are_refused():
    with pytest.raises(UsageError, match="'x', which is not among the 2 characters"):
        Characters("ab").encode("abx")
    with pytest.raises(UsageError, match="'klingon' is unknown"):
        tokenizer_from_meta({"name": "klingon"})
    with pytest.raises(Failure, match='lacks its "characters"'):
        tokenizer_from_meta({"name": "char", "vocab_size": 65})


def test_without_network_or_cache_a_sentence(tmp_path):
    """In a process of its own: tiktoken remembers what it has loaded."""
    code = "from data.tokenizers import make_tokenizer; from errors import run_script\n"
    code += "run_script(lambda: make_tokenizer('gpt2'))"
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "GPT-2's vocabulary" in done.stderr and "--tokenizer bytes" in done.stderr

"""From text to token ids and back.

A tokeniser has a name, a vocab_size, an end_of_text id (or None), `encode`, and `token_bytes`, from which all
decoding is made. What is needed to make it again stands in a corpus' meta.json (`to_meta`).
"""

import codecs
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import numpy as np

from errors import Failure, UsageError


class Tokenizer(Protocol):
    """vocab_size: ids run from 0 to vocab_size - 1. end_of_text: the id put behind each document."""

    name: str
    vocab_size: int
    end_of_text: int | None

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,), uint16; raises UsageError for text it has no ids for."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one token, possibly a part of a character."""

    def to_meta(self) -> dict[str, Any]:
        """Plain data from which `tokenizer_from_meta` makes the same tokeniser."""


class Bytes:
    """A token is a byte of UTF-8: needs no vocabulary, so no network."""

    name: ClassVar[str] = "bytes"
    vocab_size: ClassVar[int] = 257
    end_of_text: ClassVar[int] = 256

    def encode(self, text: str) -> np.ndarray:
        # surrogateescape: whatever a shell hands over as a prompt has bytes.
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8).astype(np.uint16)

    def token_bytes(self, token: int) -> bytes:
        return b"\n" if token == self.end_of_text else bytes([token])

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class Gpt2:
    """GPT-2's byte-pair encoding, from tiktoken's cache or its download."""

    name: ClassVar[str] = "gpt2"
    vocab_size: ClassVar[int] = 50257
    end_of_text: ClassVar[int] = 50256

    def __init__(self) -> None:
        import tiktoken

        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # whatever the download came to: requests has many ways to fail
            raise Failure(
                "GPT-2's vocabulary is not in tiktoken's cache (TIKTOKEN_CACHE_DIR), and its download failed "
                f"({type(error).__name__}); cache it on a machine with network, or use --tokenizer bytes"
            ) from error

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), dtype=np.uint16)

    def token_bytes(self, token: int) -> bytes:
        return b"\n" if token == self.end_of_text else self._encoding.decode_single_token_bytes(token)

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class Characters:
    """A token is a character of the corpus, in the order of code points (nanoGPT's shakespeare-char)."""

    name: ClassVar[str] = "char"
    end_of_text: ClassVar[None] = None

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self._ids = {character: index for index, character in enumerate(characters)}

    def encode(self, text: str) -> np.ndarray:
        unknown = sorted(set(text) - self._ids.keys())
        if unknown:
            raise UsageError(
                f"the text holds {unknown[0]!r}, which is not among the {self.vocab_size} characters known"
            )
        return np.array([self._ids[character] for character in text], dtype=np.uint16)

    def token_bytes(self, token: int) -> bytes:
        return self.characters[token].encode()

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size, "characters": self.characters}


# Those that need no corpus to be made.
TOKENIZERS: dict[str, type[Tokenizer]] = {tokenizer.name: tokenizer for tokenizer in (Bytes, Gpt2)}


def make_tokenizer(name: str) -> Tokenizer:
    """`bytes` or `gpt2`. Raises UsageError for other names, Failure where the vocabulary cannot be had."""
    if name not in TOKENIZERS:
        raise UsageError(f"tokeniser {name!r} is unknown to this version; it has {' and '.join(TOKENIZERS)}")
    return TOKENIZERS[name]()


def tokenizer_from_meta(meta: dict[str, Any]) -> Tokenizer:
    """The tokeniser that `to_meta` described.

    Raises UsageError for one that this version does not know, Failure where its vocabulary cannot be had.
    """
    if meta.get("name") != Characters.name:
        return make_tokenizer(meta.get("name"))
    if not isinstance(meta.get("characters"), str):
        raise Failure('the description of the char tokeniser lacks its "characters": bring one that has them')
    return Characters(meta["characters"])


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of the tokens; bytes that form no character become U+FFFD."""
    return b"".join(tokenizer.token_bytes(int(token)) for token in tokens).decode("utf-8", "replace")


class StreamDecoder:
    """Text as tokens come in: a character appears when its last byte has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left of a character that was never completed."""
        return self._decoder.decode(b"", final=True)

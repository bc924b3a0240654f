"""From text to token ids and back.

A tokeniser has a name, a vocab_size, an end_of_text id (or None), `encode`, and `token_bytes`, from which all
decoding is made. What is needed to make it again stands in a corpus' meta.json (`to_meta`).
"""

import codecs
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from data.huggingface import HuggingFace
from data.ids import id_dtype
from errors import Failure, UsageError


class Tokenizer(Protocol):
    """vocab_size: ids run from 0 to vocab_size - 1. dtype: of ids on disk, uint16 or uint32.

    end_of_text: the id put behind each document.
    """

    name: str
    vocab_size: int
    dtype: np.dtype
    end_of_text: int | None

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,), of `dtype`; raises UsageError for text it has no ids for."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one token, possibly a part of a character."""

    def to_meta(self) -> dict[str, Any]:
        """Plain data from which `tokenizer_from_meta` makes the same tokeniser."""


class Bytes:
    """A token is a byte of UTF-8: needs no vocabulary, so no network."""

    name: ClassVar[str] = "bytes"
    vocab_size: ClassVar[int] = 257
    dtype: ClassVar[np.dtype] = id_dtype(257)
    end_of_text: ClassVar[int] = 256

    def encode(self, text: str) -> np.ndarray:
        # surrogateescape: whatever a shell hands over as a prompt has bytes.
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8).astype(np.uint16)

    def token_bytes(self, token: int) -> bytes:
        return b"\n" if token == self.end_of_text else bytes([token])

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class Tiktoken:
    """A byte-pair encoding of OpenAI's, from tiktoken's cache or its download. name: gpt2 or cl100k_base."""

    SIZES: ClassVar[dict[str, tuple[int, int]]] = {  # vocab_size, end_of_text
        "gpt2": (50257, 50256),
        "cl100k_base": (100277, 100257),
    }

    def __init__(self, name: str) -> None:
        import tiktoken

        self.name = name
        self.vocab_size, self.end_of_text = self.SIZES[name]
        self.dtype = id_dtype(self.vocab_size)
        try:
            self._encoding = tiktoken.get_encoding(name)
        except Exception as error:  # whatever the download came to: requests has many ways to fail
            raise Failure(
                f"the vocabulary of {name} is not in tiktoken's cache "
                f"(TIKTOKEN_CACHE_DIR={os.environ.get('TIKTOKEN_CACHE_DIR', '')!s}), and its download failed "
                f"({type(error).__name__}); on a machine with network run `python -m data.openwebtext2 bpe "
                f"--tokenizer {name}` with TIKTOKEN_CACHE_DIR set to a folder that this one sees, and set it "
                "here too; or use --tokenizer bytes"
            ) from error

    def encode(self, text: str) -> np.ndarray:
        try:
            tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half a surrogate pair, which this form replaces
            tokens = np.array(self._encoding.encode_ordinary(text))
        except ValueError as error:  # its pattern can run out of stack: a million spaces before a letter
            raise UsageError(f"{self.name} cannot split the text ({error})") from error
        return tokens.astype(self.dtype)

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
        self.dtype = id_dtype(self.vocab_size)
        self._ids = {character: index for index, character in enumerate(characters)}

    def encode(self, text: str) -> np.ndarray:
        unknown = sorted(set(text) - self._ids.keys())
        if unknown:
            raise UsageError(
                f"the text holds {unknown[0]!r}, which is not among the {self.vocab_size} characters known"
            )
        return np.array([self._ids[character] for character in text], dtype=self.dtype)

    def token_bytes(self, token: int) -> bytes:
        return self.characters[token].encode()

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size, "characters": self.characters}


class Words:
    """A token is a word of a short list: of generated corpora. Words stand apart by spaces."""

    name: ClassVar[str] = "words"
    end_of_text: ClassVar[None] = None

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.vocab_size = len(self.words)
        self.dtype = id_dtype(self.vocab_size)
        self._ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, text: str) -> np.ndarray:
        unknown = [word for word in text.split() if word not in self._ids]
        if unknown:
            raise UsageError(
                f"{unknown[0]!r} is none of the {self.vocab_size} words: {' '.join(self.words[:8])} ..."
            )
        return np.array([self._ids[word] for word in text.split()], dtype=self.dtype)

    def token_bytes(self, token: int) -> bytes:
        return b" " + self.words[token].encode()

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size, "words": list(self.words)}


# Those that go by a name; a path that ends in .json is a Hugging Face tokeniser.
NAMED = (Bytes.name, *Tiktoken.SIZES)


def make_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `gpt2`, `cl100k_base`, or the path of a Hugging Face tokenizer.json.

    Raises UsageError for other names, Failure where the vocabulary cannot be had.
    """
    if name == Bytes.name:
        return Bytes()
    if name in Tiktoken.SIZES:
        return Tiktoken(name)
    if isinstance(name, str) and name.endswith(".json"):
        return HuggingFace(Path(name))
    raise UsageError(
        f"tokeniser {name!r} is unknown to this version; it has {', '.join(NAMED)}, or give the path of a "
        "Hugging Face tokenizer.json"
    )


def tokenizer_from_meta(meta: dict[str, Any], elsewhere: Path | None = None) -> Tokenizer:
    """The tokeniser that `to_meta` described. elsewhere: where else its file may be.

    Raises UsageError for one that this version does not know, Failure where its vocabulary cannot be had.
    """
    if meta.get("name") == HuggingFace.name:
        return HuggingFace.find(meta, elsewhere)
    if meta.get("name") == Words.name:
        return Words(meta["words"])
    if meta.get("name") != Characters.name:
        return make_tokenizer(meta.get("name"))
    if not isinstance(meta.get("characters"), str):
        raise Failure('the description of the char tokeniser lacks its "characters": bring one that has them')
    return Characters(meta["characters"])


def same_tokenizer(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions mean the same ids; where the files are does not matter."""
    return {**one, "path": None} == {**other, "path": None}


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

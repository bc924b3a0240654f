"""Tokenisers: text to token ids and back.

A tokeniser encodes a text and gives the bytes of each token, from which texts are decoded. Its description
(`to_meta`) is kept in meta.json and in checkpoints, and makes the same tokeniser again.
"""

import codecs
import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from data.token_files import HF_TOKENIZER, id_dtype
from errors import Failure, UsageError
from files import copy_atomically, file_sha256, require_regular


class Tokenizer(Protocol):
    """Ids run from 0 to vocab_size - 1. dtype: of ids on disk. end_of_text: the id after each document."""

    name: str
    vocab_size: int
    dtype: np.dtype
    end_of_text: int | None

    def encode(self, text: str) -> np.ndarray:
        """Token ids (n,) of `dtype`. Raises UsageError for text that has none."""

    def token_bytes(self, token: int, before: Sequence[int] = ()) -> bytes:
        """The UTF-8 bytes that a token adds to a text, which may be a part of a character.

        before: the tokens before it, on which a space between words can depend.
        """

    def to_meta(self) -> dict[str, Any]:
        """Plain data from which `tokenizer_from_meta` makes the same tokeniser."""


class ByteTokenizer:
    """A token is a byte of UTF-8. Needs no vocabulary file, hence no network."""

    name = "bytes"
    vocab_size = 257
    dtype = id_dtype(257)
    end_of_text: int | None = 256

    def encode(self, text: str) -> np.ndarray:
        # surrogateescape: a prompt from the shell may hold bytes that are no UTF-8.
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8).astype(np.uint16)

    def token_bytes(self, token: int, before: Sequence[int] = ()) -> bytes:
        return b"\n" if token == self.end_of_text else bytes([token])

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class TiktokenTokenizer:
    """OpenAI's byte-pair encodings gpt2 and cl100k_base, from tiktoken's cache or its download."""

    SIZES: ClassVar[dict[str, tuple[int, int]]] = {  # vocab_size, end_of_text
        "gpt2": (50257, 50256),
        "cl100k_base": (100277, 100257),
    }

    def __init__(self, name: str) -> None:
        import tiktoken

        self.name = name
        self.end_of_text: int | None
        self.vocab_size, self.end_of_text = self.SIZES[name]
        self.dtype = id_dtype(self.vocab_size)
        try:
            self._encoding = tiktoken.get_encoding(name)
        except Exception as error:  # the download can fail in many ways
            raise Failure(
                f"the vocabulary of {name} is not in tiktoken's cache "
                f"(TIKTOKEN_CACHE_DIR={os.environ.get('TIKTOKEN_CACHE_DIR', '')!s}), and its download failed "
                f"({type(error).__name__}); on a machine with network run `python prepare_data.py "
                f"openwebtext2 bpe --tokenizer {name}` with TIKTOKEN_CACHE_DIR set to a folder that this "
                f"machine sees, and set "
                "it here too; or use --tokenizer bytes"
            ) from error

    def encode(self, text: str) -> np.ndarray:
        try:
            tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # a lone surrogate, which encode_ordinary replaces
            tokens = np.array(self._encoding.encode_ordinary(text))
        except (
            ValueError
        ) as error:  # its pattern can run out of stack, as at a million spaces before a letter
            raise UsageError(f"{self.name} cannot split the text ({error})") from error
        return tokens.astype(self.dtype)

    def token_bytes(self, token: int, before: Sequence[int] = ()) -> bytes:
        return b"\n" if token == self.end_of_text else self._encoding.decode_single_token_bytes(token)

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class CharTokenizer:
    """A token is a character of the corpus, in the order of code points, as in nanoGPT's shakespeare_char."""

    name = "char"
    end_of_text: int | None = None

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

    def token_bytes(self, token: int, before: Sequence[int] = ()) -> bytes:
        return self.characters[token].encode()

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size, "characters": self.characters}


class WordTokenizer:
    """A token is a word of a short list, for generated corpora. Words are separated by spaces."""

    name = "words"
    end_of_text: int | None = None

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

    def token_bytes(self, token: int, before: Sequence[int] = ()) -> bytes:
        return b" " + self.words[token].encode()

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size, "words": list(self.words)}


NAMES = (ByteTokenizer.name, *TiktokenTokenizer.SIZES)  # for --tokenizer, which also takes paths


def make_tokenizer(name: str) -> Tokenizer:
    """Make `bytes`, `gpt2`, `cl100k_base`, or a Hugging Face tokeniser from the path of its tokenizer.json.

    Raises UsageError for other names, Failure if the vocabulary is not available.
    """
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name in TiktokenTokenizer.SIZES:
        return TiktokenTokenizer(name)
    if isinstance(name, str) and name.endswith(".json"):
        from data.hf_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(Path(name))
    raise UsageError(
        f"tokeniser {name!r} is unknown to this version; it has {', '.join(NAMES)}, or give the path of a "
        "Hugging Face tokenizer.json"
    )


def describe(name: str) -> tuple[dict[str, Any], int | None]:
    """A tokeniser's `to_meta` and end-of-text id; GPT-2's and its relatives' without their vocabulary.

    Raises as `make_tokenizer` does.
    """
    if name in TiktokenTokenizer.SIZES:
        vocab_size, end_of_text = TiktokenTokenizer.SIZES[name]
        return {"name": name, "vocab_size": vocab_size}, end_of_text
    tokenizer = make_tokenizer(name)
    return tokenizer.to_meta(), tokenizer.end_of_text


def keep_file(path: Path, folder: Path) -> Path:
    """Copy a tokenizer.json next to files made with it, unless it is there; returns the copy's path.

    A copy that differs was damaged or left behind, and is replaced. Raises Failure when writing fails.
    """
    copy = folder / HF_TOKENIZER
    with contextlib.suppress(OSError):
        require_regular(copy)
        if file_sha256(copy) == file_sha256(path):
            return copy
    copy_atomically(path, copy)
    return copy


def tokenizer_from_meta(meta: dict[str, Any], elsewhere: Path | None = None) -> Tokenizer:
    """Make the tokeniser that `to_meta` described. elsewhere: another path where its file may be.

    Raises UsageError for an unknown one, Failure if its vocabulary is not available.
    """
    if meta.get("name") == HF_TOKENIZER:
        from data.hf_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer.find(meta, elsewhere)
    if meta.get("name") == WordTokenizer.name:
        return WordTokenizer(meta["words"])
    if meta.get("name") != CharTokenizer.name:
        return make_tokenizer(meta.get("name"))
    if not isinstance(meta.get("characters"), str):
        raise Failure(
            'the description of the char tokeniser lacks its "characters"; copy a meta.json with them here'
        )
    return CharTokenizer(meta["characters"])


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's token ids; of an empty one, the end-of-text token's.

    Raises UsageError if the prompt is empty and the tokeniser has no end-of-text token, or it has no ids for
    the prompt.
    """
    ids = tokenizer.encode(prompt).tolist()
    if ids:
        return ids
    if tokenizer.end_of_text is None:
        raise UsageError("the prompt is empty, and this tokeniser has no end-of-text token to begin with")
    return [tokenizer.end_of_text]


def same_tokenizer(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions mean the same ids, wherever their files are."""
    return {**one, "path": None} == {**other, "path": None}


def decode(tokenizer: Tokenizer, tokens: Iterable[int], context: Sequence[int] = ()) -> str:
    """The text of token ids after those of `context`; bytes that form no character become U+FFFD."""
    decoder = StreamDecoder(tokenizer, context)
    return "".join(map(decoder.push, map(int, tokens))) + decoder.finish()


class StreamDecoder:
    """Decodes tokens as they arrive: a character appears with its last byte.

    context: the ids before the first token, such as a prompt's; their text is not repeated.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(context)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        added = self._tokenizer.token_bytes(token, self._tokens)
        self._tokens.append(token)
        return self._decoder.decode(added)

    def finish(self) -> str:
        """The replacement for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)

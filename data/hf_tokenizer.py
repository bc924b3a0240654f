"""Hugging Face tokenisers: any tokenizer.json that the `tokenizers` library reads."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.token_files import HF_TOKENIZER, id_dtype
from errors import Failure, UsageError
from files import file_sha256, require_regular

# Names that models use for the token after a document, most common first.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


class HuggingFaceTokenizer:
    """The tokeniser in a tokenizer.json. Special tokens within a text are encoded as text; none is added.

    In texts that are decoded, special tokens are left out, but the end of a text is a new line.
    """

    name = HF_TOKENIZER

    def __init__(self, path: Path) -> None:
        import tokenizers

        content = _read(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            described = json.loads(content)
            if self._tokenizer.decoder is None:
                self._tokenizer.decoder = _usual_decoder(described)
        except Exception as error:  # the library raises bare Exceptions
            raise UsageError(f"{path} is no valid tokenizer.json ({' '.join(str(error).split())})") from error
        self.path = path.resolve()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.dtype = id_dtype(self.vocab_size)
        ends = [vocabulary[token] for token in END_OF_TEXT if token in vocabulary]
        if not ends:
            raise UsageError(f"{path} has no token for the end of a text: none of {', '.join(END_OF_TEXT)}")
        self.end_of_text: int | None = ends[0]
        added = self._tokenizer.get_added_tokens_decoder()
        # The bytes of tokens whose bytes do not depend on those before them.
        self._bytes = {token: b"" for token, about in added.items() if about.special}
        if "ByteLevel" in _kinds(described.get("decoder") or described.get("pre_tokenizer")):
            written = {token: about.content.encode() for token, about in added.items()}
            self._bytes = _byte_level(vocabulary) | written | self._bytes
        else:
            self._bytes |= _fallback(vocabulary)
        self._bytes[self.end_of_text] = b"\n"

    @classmethod
    def find(cls, meta: dict[str, Any], elsewhere: Path | None) -> "HuggingFaceTokenizer":
        """Load the file that `meta` describes, from its recorded path or elsewhere, else raise Failure."""
        for path in (Path(meta.get("path", "")), elsewhere):
            if path is None or not path.is_file():
                continue
            with contextlib.suppress(OSError):  # the other place may have it
                if file_sha256(path) == meta.get("sha256"):
                    return cls(path)
        raise Failure(
            f"the tokenizer.json of this model (sha256 {str(meta.get('sha256'))[:12]}...) is no longer at "
            f"{meta.get('path')}; copy it back there, or give --tokenizer with its path"
        )

    def encode(self, text: str) -> np.ndarray:
        text = text.encode("utf-8", "replace").decode()  # the library rejects lone surrogates
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # bare, as above: for example a word without an id
            raise UsageError(f"the tokeniser {self.path} cannot encode the text ({error})") from error
        return np.array(ids, dtype=self.dtype)

    def token_bytes(self, token: int, before: Sequence[int] = ()) -> bytes:
        if token in self._bytes:
            return self._bytes[token]
        previous = next((one for one in reversed(before) if self._bytes.get(one) != b""), self.end_of_text)
        if previous == self.end_of_text:  # a document begins
            return self._text(token).encode()
        return self._text(previous, token)[len(self._text(previous)) :].encode()

    def _text(self, *tokens: int) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def to_meta(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "sha256": self.sha256,
            "path": str(self.path),
        }


def _read(path: Path) -> bytes:
    try:
        require_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the tokeniser {path}: {error.strerror}") from error


def _kinds(part: dict[str, Any] | None) -> set[str]:
    """The types that a decoder or pre-tokeniser is made of."""
    parts = part or {}
    inner = [*parts.get("decoders", []), *parts.get("pretokenizers", [])]
    return {parts.get("type", ""), *(found["type"] for found in inner)}


def _usual_decoder(described: dict[str, Any]) -> Any:
    """The decoder that undoes how a tokenizer.json without one splits words; None for words in a list."""
    from tokenizers import decoders

    splits, model = _kinds(described.get("pre_tokenizer")), described["model"]
    if "Metaspace" in splits:
        return decoders.Metaspace()
    if model.get("type") == "WordPiece":
        return decoders.WordPiece(prefix=model["continuing_subword_prefix"])
    if model.get("end_of_word_suffix"):
        return decoders.BPEDecoder(suffix=model["end_of_word_suffix"])
    return None


def _byte_level(vocabulary: dict[str, int]) -> dict[int, bytes]:
    """The bytes of byte-level tokens: GPT-2 writes printable bytes as themselves, others above U+0100."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    table |= {chr(256 + index): byte for index, byte in enumerate(shifted)}
    return {
        index: bytes(table[character] for character in token)
        for token, index in vocabulary.items()
        if all(character in table for character in token)
    }


def _fallback(vocabulary: dict[str, int]) -> dict[int, bytes]:
    """The tokens that stand for a byte in SentencePiece's way, <0x0A>."""
    named = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    return {vocabulary[name]: byte for name, byte in named.items() if name in vocabulary}

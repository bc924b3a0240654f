"""Hugging Face tokenisers: any tokenizer.json that the `tokenizers` library reads."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.token_files import HF_TOKENIZER, id_dtype
from errors import Failure, UsageError

# Names that models use for the token after a document, most common first.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


class HuggingFaceTokenizer:
    """The tokeniser in a tokenizer.json. Special tokens within a text are encoded as text; none is added."""

    name: ClassVar[str] = HF_TOKENIZER

    def __init__(self, path: Path) -> None:
        import tokenizers

        content = _read(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            decoder = json.loads(content).get("decoder") or {}
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
        self.end_of_text = ends[0]
        kinds = {part.get("type") for part in (decoder, *decoder.get("decoders", []))}
        self._bytes_of_token = _byte_level_bytes if "ByteLevel" in kinds else _marked_bytes

    @classmethod
    def find(cls, meta: dict[str, Any], elsewhere: Path | None) -> "HuggingFaceTokenizer":
        """Load the file that `meta` describes, from its recorded path or elsewhere, else raise Failure."""
        for path in (Path(meta.get("path", "")), elsewhere):
            if path is not None and path.is_file():
                found = cls(path)
                if found.sha256 == meta.get("sha256"):
                    return found
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

    def token_bytes(self, token: int) -> bytes:
        if token == self.end_of_text:
            return b"\n"
        return self._bytes_of_token(self._tokenizer.id_to_token(token) or "")

    def to_meta(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "sha256": self.sha256,
            "path": str(self.path),
        }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the tokeniser {path}: {error.strerror}") from error


def _byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level BPE token: GPT-2 writes printable bytes as themselves, others above U+0100."""
    return b"".join(_BYTES.get(character, character.encode()) for character in token)


def _byte_characters() -> dict[str, bytes]:
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): bytes([byte]) for byte in plain}
    return table | {chr(256 + index): bytes([byte]) for index, byte in enumerate(shifted)}


_BYTES = _byte_characters()


def _marked_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece (U+2581: space, <0x0A>: a byte) or WordPiece (##: within words) token."""
    byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    if byte:
        return bytes([int(byte[1], 16)])
    if token.startswith("##"):
        return token[2:].encode()
    return token.replace("\u2581", " ").encode()

"""Tiny Shakespeare (public domain), the text of Karpathy's char-rnn, by characters."""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from data.sources import utf16_hint
from data.token_files import write_corpus
from data.tokenise import Preparation, refuse_fraction
from data.tokenizers import CharTokenizer
from errors import Failure, UsageError
from files import file_sha256

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TIMEOUT_SECONDS = 20


def prepare(job: Preparation) -> int:
    """Write the token files: the first 90 % of the characters, and the rest. Returns 1, the documents."""
    refuse_fraction(job.corpus, job.val_fraction)
    content, checksum = text(job.data_dir, job.folder)
    tokenizer = CharTokenizer("".join(sorted(set(content))))
    if tokenizer.vocab_size > 1 << 16:
        raise UsageError(f"the text has {tokenizer.vocab_size:,} different characters; 65,536 are possible")
    tokens = tokenizer.encode(content)
    cut = int(0.9 * len(tokens))
    meta = {
        "corpus": "shakespeare-char",
        "tokenizer": tokenizer.to_meta(),
        "source": "tiny Shakespeare",
        "sha256": checksum,
        "documents": {"train": 1, "val": 1},
        "bytes": {"train": len(content[:cut].encode()), "val": len(content[cut:].encode())},
        "split": "the first 90 % of the characters, and the rest",
    }
    write_corpus(job.folder, {"train": [tokens[:cut]], "val": [tokens[cut:]]}, meta)
    return 1


def find(data_dir: Path, folder: Path) -> Path | None:
    """The file of the text in `folder` or `data_dir`, if there is one."""
    paths = (folder / "input.txt", folder / "tinyshakespeare.txt", data_dir / "tinyshakespeare.txt")
    return next((path for path in paths if path.is_file()), None)


def text(data_dir: Path, folder: Path) -> tuple[str, str]:
    """The text and the SHA-256 of its bytes, from a file or downloaded. Raises Failure if neither works."""
    path = find(data_dir, folder)
    if path is not None:
        return _read(path), file_sha256(path)
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # the latter if the answer is no HTTP
        reason = " ".join(str(error).split())  # it may quote lines of the answer
        raise Failure(
            f"tiny Shakespeare could not be downloaded ({reason}); put the text at {folder / 'input.txt'}, "
            "and run the same command again"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise Failure(f"{URL} did not send the expected text: its checksum differs")
    return content.decode(), SHA256


def _read(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8 (byte {error.start}){utf16_hint(error)}") from error
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from error
    if not content:
        raise UsageError(f"{path} is empty; put a text there, or delete it to download tiny Shakespeare")
    return content

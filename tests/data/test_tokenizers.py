"""Text to ids and back."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from data import open_corpus
from data.token_files import vocabulary_note
from data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    decode,
    keep_file,
    make_tokenizer,
    prompt_ids,
    same_tokenizer,
    tokenizer_from_meta,
)
from errors import Failure, UsageError
from tests.conftest import ROOT, SHARED_DATA

MIXED = "Plain, naïve, 日本語, 🙂 and\n\ttabs. <|endoftext|>"
CACHE = SHARED_DATA / "tiktoken_cache"


@pytest.fixture(params=["bytes", "char", "gpt2"])
def tokenizer(request, monkeypatch):
    if request.param == "char":
        return CharTokenizer("".join(sorted(set(MIXED))))
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


def test_restored_from_its_description(tokenizer):
    again = tokenizer_from_meta(tokenizer.to_meta())
    assert again.encode(MIXED).tolist() == tokenizer.encode(MIXED).tolist()
    assert again.vocab_size == tokenizer.vocab_size


def test_an_empty_prompt_begins_with_the_end_of_a_text(tokenizer):
    assert prompt_ids(tokenizer, MIXED) == tokenizer.encode(MIXED).tolist()
    if tokenizer.end_of_text is None:
        with pytest.raises(UsageError, match="has no end-of-text token to begin with"):
            prompt_ids(tokenizer, "")
    else:
        assert prompt_ids(tokenizer, "") == [tokenizer.end_of_text]


def test_streaming_never_cuts_a_character(tokenizer):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(int(token)) for token in tokenizer.encode(MIXED)]
    assert "".join(pieces) + decoder.finish() == MIXED
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_is_shown_as_such():
    decoder = StreamDecoder(ByteTokenizer())
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.finish() == "\ufffd"


def test_end_of_text_is_shown_as_a_new_line(tokenizer):
    if tokenizer.end_of_text is not None:
        assert decode(tokenizer, [tokenizer.end_of_text]) == "\n"


def test_unknown_characters_and_tokenisers_are_refused():
    with pytest.raises(UsageError, match="'x', which is not among the 2 characters"):
        CharTokenizer("ab").encode("abx")
    with pytest.raises(UsageError, match="'klingon' is unknown"):
        tokenizer_from_meta({"name": "klingon"})
    with pytest.raises(Failure, match='lacks its "characters"'):
        tokenizer_from_meta({"name": "char", "vocab_size": 65})


@pytest.mark.process
def test_without_network_or_cache_a_sentence(tmp_path):
    """In a process of its own: tiktoken remembers what it has loaded."""
    code = "from data.tokenizers import make_tokenizer; from errors import run_script\n"
    code += "run_script(lambda: make_tokenizer('gpt2'))"
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        "python prepare_data.py openwebtext2 bpe --tokenizer gpt2" in done.stderr
        and "--tokenizer bytes" in done.stderr
    )


def train_tokenizer(path, kind):
    """A small tokenizer.json of each family, trained on our own sentences."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<unk>"]
    if kind == "byte level":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    else:  # SentencePiece's way
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        made.decoder = decoders.Sequence(
            [decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback()]
        )
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *fallback])
    made.train_from_iterator([MIXED, "the cat sat on the mat and thought again"] * 20, trainer)
    made.enable_truncation(3)
    made.save(str(path))
    return made


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_a_hugging_face_tokeniser(tmp_path, kind):
    path = tmp_path / "tokenizer.json"
    made = train_tokenizer(path, kind)
    ours = make_tokenizer(str(path))
    assert ours.vocab_size == made.get_vocab_size() and ours.dtype == "<u2"
    assert ours.end_of_text == made.token_to_id("<|endoftext|>")
    for text in (MIXED, "the cat", " thought  again\n", "unseen: ∑ ☃"):
        ids = ours.encode(text)
        assert ours.end_of_text not in ids  # in a text it is text
        assert decode(ours, ids) == text
        made.no_truncation()
        if "<|" not in text:
            assert ids.tolist() == made.encode(text, add_special_tokens=False).ids
    again = tokenizer_from_meta(ours.to_meta())
    assert again.encode(MIXED).tolist() == ours.encode(MIXED).tolist()
    path.rename(tmp_path / "moved.json")
    with pytest.raises(Failure, match="is no longer at"):
        tokenizer_from_meta(ours.to_meta())
    assert tokenizer_from_meta(ours.to_meta(), tmp_path / "moved.json").sha256 == ours.sha256
    assert same_tokenizer(ours.to_meta(), make_tokenizer(str(tmp_path / "moved.json")).to_meta())


SENTENCE = "the cat sat on the mat and thought again"


def train_word_tokenizer(path, kind, with_decoder=True):
    """A small tokenizer.json whose decoder puts the spaces between words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    shared = {"vocab_size": 35, "special_tokens": ["<|endoftext|>", "[UNK]"]}
    suffix = {"end_of_word_suffix": "</w>"} if kind == "BPE" else {}
    made = tokenizers.Tokenizer(getattr(models, kind)(unk_token="[UNK]", **suffix))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if with_decoder:
        made.decoder = {"BPE": decoders.BPEDecoder("</w>"), "WordPiece": decoders.WordPiece()}[kind]
    trainer = {"BPE": "BpeTrainer"}.get(kind, f"{kind}Trainer")
    made.train_from_iterator([SENTENCE] * 3, getattr(trainers, trainer)(**shared, **suffix))
    made.save(str(path))
    return made


@pytest.mark.parametrize(
    ("kind", "with_decoder"),
    [("BPE", True), ("BPE", False), ("WordPiece", True), ("WordPiece", False), ("WordLevel", False)],
)
def test_words_keep_their_spaces_token_by_token(tmp_path, kind, with_decoder):
    """As one text, as a stream, and as a prompt with its continuation, cut before any token."""
    made = train_word_tokenizer(tmp_path / "tokenizer.json", kind, with_decoder)
    ours = make_tokenizer(str(tmp_path / "tokenizer.json"))
    ids = ours.encode(SENTENCE).tolist()
    assert decode(ours, ids) == SENTENCE
    assert kind == "WordLevel" or len(ids) > len(SENTENCE.split())
    for cut in range(len(ids) + 1):
        stream = StreamDecoder(ours, ids[:cut])
        pieces = [stream.push(token) for token in ids[cut:]]
        assert decode(ours, ids[:cut]) + "".join(pieces) + stream.finish() == SENTENCE
        assert all(pieces)  # none waits for a later token: each has the colour of its own
    with_unknown = ours.encode("the ☃ cat").tolist()
    if with_decoder or kind == "WordLevel":
        assert decode(ours, with_unknown) == made.decode(with_unknown) == "the cat"
    assert decode(ours, [*ids, ours.end_of_text, *ids]) == f"{SENTENCE}\n{SENTENCE}"


@pytest.mark.parametrize("prepend_scheme", ["always", "first", "never"])
def test_a_space_before_the_first_word_is_that_of_the_tokeniser(tmp_path, prepend_scheme):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    made.train_from_iterator([SENTENCE] * 3, trainers.BpeTrainer(vocab_size=50, special_tokens=["</s>"]))
    made.save(str(tmp_path / "tokenizer.json"))
    ours = make_tokenizer(str(tmp_path / "tokenizer.json"))
    ids = ours.encode(SENTENCE).tolist()
    assert decode(ours, ids) == SENTENCE
    assert decode(ours, ids, context=ids) == (SENTENCE if prepend_scheme == "never" else f" {SENTENCE}")


def test_added_tokens_of_a_byte_level_tokeniser_are_written_as_they_are(tmp_path):
    path = tmp_path / "tokenizer.json"
    made = train_tokenizer(path, "byte level")
    made.no_truncation()
    made.add_tokens(["café!"])  # é stands for a byte in other tokens
    made.save(str(path))
    ours = make_tokenizer(str(path))
    assert decode(ours, ours.encode("a café! and é")) == "a café! and é"


def test_files_that_are_no_tokeniser(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UsageError, match="cannot read the tokeniser"):
        make_tokenizer(str(path))
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"is no valid tokenizer\.json"):
        make_tokenizer(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match=r"cannot read the tokeniser .*: not a regular file"):
        make_tokenizer(str(path))


def test_wide_ids_on_disk(tmp_path):
    """A vocabulary beyond 65,536: uint32 in the token files, and back as windows."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<|endoftext|>", "a", "b", *map(str, range(70_000))])}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("a b 69999 b 123 " * 10)
    settings = {"data_dir": tmp_path / "data", "tokenizer": str(tmp_path / "tokenizer.json")}
    name = f"files:{tmp_path}/*.txt"
    corpus = open_corpus(name, **settings, vocab_size=70_016)
    assert corpus.arrays("train")[0].dtype == "<u4" and corpus.meta["dtype"] == "uint32"
    inputs, _ = corpus.windows("train", 5, 70_016).gather(np.array([0]))
    assert inputs.tolist() == [[1, 2, 70_002, 2, 126]]
    with pytest.raises(
        UsageError, match=r"has 70,003 tokens, more than --vocab_size 50,304; give --vocab_size 70016"
    ):
        open_corpus(name, **settings, vocab_size=50304)
    (tmp_path / "tokenizer.json").rename(tmp_path / "away.json")  # the corpus has its own copy
    assert corpus.load_tokenizer().vocab_size == 70_003


@pytest.mark.parametrize("left", ["half", "other"])
def test_the_copy_next_to_token_files_is_never_half(tmp_path, left):
    """As a kill in an earlier version's copy leaves it; and where the disk is full meanwhile."""
    path = tmp_path / "tokenizer.json"
    train_tokenizer(path, "byte level")
    folder = tmp_path / "data"
    folder.mkdir()
    content = path.read_bytes()
    (folder / "tokenizer.json").write_bytes(content[: len(content) // 2] if left == "half" else b"{}")
    assert keep_file(path, folder).read_bytes() == content
    stat = keep_file(path, folder).stat()
    assert keep_file(path, folder).stat() == stat  # not written again
    (folder / "tokenizer.json").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, limits[1]))
    try:
        with pytest.raises(Failure, match=r"cannot write .*tokenizer\.json: File too large"):
            keep_file(path, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.iterdir()) == []


def test_a_damaged_copy_does_not_hide_the_file_that_is_given(tmp_path):
    train_tokenizer(tmp_path / "tokenizer.json", "byte level")
    meta = make_tokenizer(str(tmp_path / "tokenizer.json")).to_meta()
    (tmp_path / "damaged.json").write_text("{")
    meta["path"] = str(tmp_path / "damaged.json")
    assert tokenizer_from_meta(meta, tmp_path / "tokenizer.json").sha256 == meta["sha256"]
    with pytest.raises(Failure, match=r"is no longer at .*damaged\.json; copy it back"):
        tokenizer_from_meta(meta)


def test_cl100k(monkeypatch, tmp_path):
    """Where its vocabulary is cached, equal to tiktoken; where it is not, the command that brings it."""
    if os.environ.get("TIKTOKEN_CACHE_DIR"):
        try:
            ours = make_tokenizer("cl100k_base")
        except Failure as error:
            assert "bpe --tokenizer cl100k_base" in str(error)
            pytest.skip("the vocabulary of cl100k_base is not cached")
        assert ours.dtype == "<u4" and decode(ours, ours.encode(MIXED)) == MIXED
        assert ours.vocab_size == ours._encoding.n_vocab and ours.end_of_text == ours._encoding.eot_token


def test_note_on_a_padded_vocabulary():
    gpt2 = {"tokenizer": {"name": "gpt2", "vocab_size": 50257}}
    assert vocabulary_note(gpt2, 50304) is None
    assert "50257 is no multiple of 64" in vocabulary_note(gpt2, 50257)
    assert "50368 has more rows than are used" in vocabulary_note(gpt2, 50368)

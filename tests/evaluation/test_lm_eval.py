"""Downstream tasks: the harness's numbers against plain forward passes, and run_lm_eval.py on local tasks.

Most tests are skipped if lm-evaluation-harness is not installed (requirements-lm-eval.txt).
"""

import json
import math
from pathlib import Path

import pytest
import torch

from data.tokenizers import ByteTokenizer, CharTokenizer
from distributed import choose_precision
from errors import UsageError
from evaluation.restore import restore
from evaluation.text import stream_texts
from models import ModelConfig
from models.language_model import LanguageModel
from tests.conftest import ROOT

PRECISION = choose_precision("float32", torch.device("cpu"))
LENGTH = 16
THRESHOLDS = {"thresholds": [0.4, 0.45]}
MODELS = {
    "base": {},
    "ln_cotformer": {},
    "adm": THRESHOLDS,
    "adaptive_but": THRESHOLDS,
    "stick_breaking": {},
    "pondernet": {},
    "pause": {},
}


def model_of(name):
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_repeat": 3, "n_layer_begin": 1, "n_layer_end": 1}
    config = ModelConfig(model=name, vocab_size=300, sequence_length=LENGTH, **sizes)
    model = LanguageModel(config).eval()
    with torch.no_grad():  # weights and routers whose outputs differ clearly between tokens
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def lab():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (requirements-lm-eval.txt)")
    from evaluation import harness

    return harness


def make(lab, name, batch_size=4, tokenizer=None, **more):
    routing = MODELS[name]
    return lab.Harness(
        model_of(name), tokenizer or ByteTokenizer(), PRECISION, batch_size=batch_size, max_length=LENGTH,
        routing=routing, **more,
    )  # fmt: skip


def instances(lab, *arguments):
    return [
        lab.Instance(request_type="loglikelihood", doc={}, arguments=each, idx=number)
        for number, each in enumerate(arguments)
    ]


@torch.no_grad()
def plain(harness, tokens, count):
    """Log-probability of the last `count` tokens: one text, no padding, no grouping."""
    idx = torch.tensor([tokens[:-1]])
    logits = harness.model(idx, idx, get_logits=True, **harness.routing)["logits"][0, -count:]
    logits = logits.log_softmax(-1)
    return sum(row[token].item() for row, token in zip(logits, tokens[-count:], strict=True))


PAIRS = [
    ("The cat", " sat"), ("The cat", " ran away"), ("", "Once"), ("a", "b"), ("a", "c"), ("Is it ", "so"),
    ("A context that does not fit at all into sixteen tokens", " here"), ("The cat", " sat"),
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_log_likelihoods_are_those_of_one_text_at_a_time(lab, name):
    harness = make(lab, name)
    found = harness.loglikelihood(instances(lab, *PAIRS), disable_tqdm=True)
    for (context, continuation), (value, _) in zip(PAIRS, found, strict=True):
        tokens = (list(context.encode()) or [256]) + list(continuation.encode())
        # A space at the end of a context belongs to the continuation, as the harness has it.
        count = len(continuation) + len(context) - len(context.rstrip())
        assert value == pytest.approx(plain(harness, tokens[-LENGTH - 1 :], count), abs=1e-4)
    alone = make(lab, name, batch_size=1).loglikelihood(instances(lab, *PAIRS), disable_tqdm=True)
    for one, other in zip(found, alone, strict=True):
        assert one == (pytest.approx(other[0], abs=1e-4), other[1])
    assert found[0] == found[-1] and len({value for value, _ in found}) == len(PAIRS) - 1
    if name in ("adm", "adaptive_but"):
        assert 1.1 < harness.average_passes < 2.9


@torch.no_grad()
def test_greedy_continuations_are_recognised(lab):
    harness = make(lab, "ln_cotformer")
    text = list(b"The cat")
    for _ in range(4):
        text.append(
            harness.model(torch.tensor([text]), get_logits=True)["logits"][0, -1, :257].argmax().item()
        )
    context, greedy = text[:7], text[7:]
    other = [*greedy[:-1], (greedy[-1] + 1) % 257]
    requests = [(None, context, greedy), (None, context, greedy[:2]), (None, context, other)]
    found = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, True, False]
    with torch.no_grad():  # an id that no tokeniser knows is never written, however likely
        harness.model.lm_head.weight[280] = 3 * harness.model.lm_head.weight[greedy[0]]
    assert harness._loglikelihood_tokens(requests[1:2], disable_tqdm=True)[0][1]


def test_answers_of_one_token_take_one_forward_pass(lab):
    harness = make(lab, "base")
    calls = []
    harness.model.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    questions = [(f"Question {number}", answer) for number in range(3) for answer in "ABCD"]
    harness.loglikelihood(instances(lab, *questions), disable_tqdm=True)
    assert calls == [(3, 10)]


def test_texts_longer_than_the_context_are_cut_into_windows(lab):
    harness = make(lab, "adm")
    text = "a text of some forty bytes, more than two windows"
    tokens = list(text.encode())
    expected = plain(harness, [256, *tokens[:16]], 16)
    expected += plain(harness, tokens[15:32], 16) + plain(harness, tokens[31:48], 16)
    expected += plain(harness, tokens[-17:], len(tokens) - 48)
    rolled = harness.loglikelihood_rolling(instances(lab, (text,), ("short",)), disable_tqdm=True)
    assert rolled[0] == pytest.approx(expected, abs=1e-4)
    assert rolled[1] == pytest.approx(plain(harness, [256, *b"short"], 5), abs=1e-4)
    assert not harness.notes
    ((value, greedy),) = harness.loglikelihood(instances(lab, ("", text)), disable_tqdm=True)
    assert value == pytest.approx(expected, abs=1e-4) and greedy is False
    assert sum(harness.notes.values()) == 1


def test_a_continuation_without_tokens_is_certain(lab):
    """Also alone in its batch, where its input is empty too."""
    harness = make(lab, "base", batch_size=1)
    found = harness.loglikelihood(instances(lab, ("a", ""), ("ab", ""), ("ab", "c")), disable_tqdm=True)
    assert found[:2] == [(0.0, True)] * 2 and found[2][0] < 0


def test_no_tokens_to_score_or_to_begin_with(lab):
    harness = make(lab, "base")
    assert harness._loglikelihood_tokens([(None, [1, 2], [])], disable_tqdm=True) == [(0.0, True)]
    assert harness.loglikelihood_rolling(instances(lab, ("",)), disable_tqdm=True) == [0.0]
    harness = make(lab, "base", tokenizer=CharTokenizer("abc"))
    assert harness.loglikelihood(instances(lab, ("a", "b")), disable_tqdm=True)
    with pytest.raises(UsageError, match="the tokeniser char has no end-of-text token"):
        harness.loglikelihood_rolling(instances(lab, ("abc",)), disable_tqdm=True)


def greedy_text(harness, prompt, count):
    """The greedy continuation, as generate.py prints it."""
    steps = stream_texts(
        harness.model, ByteTokenizer(), [prompt], count, PRECISION, seed=0, temperature=0.0, **harness.routing
    )
    return "".join(piece for ((piece, _),) in steps)


@pytest.mark.parametrize("name", ["ln_cotformer", "adm"])
def test_continuations(lab, name):
    harness = make(lab, name)
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    contexts = ["The", "The cat sat", "Once upon a time there was a context", ""]
    whole = {context: greedy_text(harness, context[-8:], 12) for context in contexts[:3]}
    found = harness.generate_until(
        instances(lab, *((context, settings) for context in contexts)), disable_tqdm=True
    )
    assert found[:3] == [text.split("\n\n")[0] for text in whole.values()] and all(found[:3])
    stop = whole["The"][2]
    (stopped,) = harness.generate_until(
        instances(lab, ("The", {"until": stop, "max_gen_toks": 12})), disable_tqdm=True
    )
    assert stopped == whole["The"].split(stop)[0]
    assert not harness.notes
    harness.generate_until(instances(lab, ("The", {"num_beams": 2, "max_gen_toks": 1})), disable_tqdm=True)
    assert list(harness.notes) == ["setting num_beams=2 of a task's continuations, which has no effect here"]


def test_the_end_of_a_text_ends_its_continuation(lab):
    harness = make(lab, "base")
    with torch.no_grad():
        row = harness.model(torch.tensor([list(b"The")]), get_logits=True)["logits"][0, -1, :257].argmax()
        harness.model.lm_head.weight[256] = 3 * harness.model.lm_head.weight[row]
    passes = []
    harness.model.register_forward_hook(lambda *_: passes.append(1))
    settings = {"until": [], "max_gen_toks": 8}
    assert harness.generate_until(instances(lab, ("The", settings)), disable_tqdm=True) == [""]
    assert len(passes) == 1


CHOICE = """task: lab_choice
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metadata: {{version: 1.0}}
"""
ROLLING = """task: lab_rolling
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: bits_per_byte
metadata: {{version: 2.0}}
"""
WRITING = """task: lab_writing
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: " mat"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}
metric_list:
  - metric: exact_match
metadata: {{version: 1.0}}
"""
GROUP = "group: lab_all\ntask: [lab_choice, lab_rolling, lab_writing]\n"
SENTENCES = [f"line {number}: the cat sat on mat {number}" for number in range(6)]


@pytest.fixture
def tasks(tmp_path):
    """A folder with three tasks and a group of them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": text, "choices": [" and", " or"], "answer": 0} for text in SENTENCES]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in {"choice": CHOICE, "rolling": ROLLING, "writing": WRITING}.items():
        (folder / f"{name}.yaml").write_text(content.format(data=folder / "data.jsonl"))
    (folder / "group.yaml").write_text(GROUP)
    return folder


class Command:
    """Runs run_lm_eval.py on one trained model, without network."""

    def __init__(self, scripts, folder, tasks, tmp_path):
        self.scripts, self.folder = scripts, folder
        self.flags = f"--checkpoint {folder} --include_path {tasks}"
        self.env = {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

    def run(self, flags):
        done = self.scripts.run("run_lm_eval.py", f"{self.flags} {flags}", process=True, **self.env)
        return done.stdout, json.loads(Path(done.stdout.rpartition("written: ")[2].strip()).read_text())

    def refuse(self, flags, code, *parts):
        said = self.scripts.run(
            "run_lm_eval.py", f"{self.flags} {flags}", code, process=True, **self.env
        ).stderr
        assert said.splitlines()[-1].startswith("error: ")
        for part in parts:
            assert part in said, said


@pytest.fixture
def command(scripts, tasks, tmp_path):
    for number in range(4):
        text = "".join(f"{sentence} and thought again.\n" for sentence in SENTENCES)
        (tmp_path / f"{number}.txt").write_text(text * 5)
    flags = scripts.train_flags(f"--dataset files:{tmp_path}/*.txt --tokenizer bytes --model adm --lr 1e-2")
    flags += " --n_layer 3 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3 --depth_embedding linear_learned"
    scripts.run("main.py", flags.replace("--vocab_size 64", "--vocab_size 320"))
    (path,) = scripts.results.glob("*/*/*/ckpt.pt")
    return Command(scripts, path.parent, tasks, tmp_path)


@pytest.mark.process
def test_the_command(lab, command):
    said, full = command.run("--tasks lab_all")
    assert all(f"- lab_{name}" in said for name in ("choice", "rolling", "writing"))
    assert full["thresholds"] == [0.0, 0.0] and full["average_passes"] == 3
    assert full["versions"]["lab_rolling"] == 2 and full["n-shot"]["lab_choice"] == 0
    assert full["n-samples"]["lab_choice"]["effective"] == 6 and full["step"] == 12
    assert 0 <= full["results"]["lab_choice"]["acc,none"] <= 1
    assert "exact_match,none" in full["results"]["lab_writing"]

    run = restore(command.folder, {})
    total = 0.0
    for sentence in SENTENCES:  # by hand: windows of 16 tokens, the last one with as much context as fits
        tokens = [256, *sentence.encode()]
        for start in range(0, len(tokens) - 1, 16):
            scored = tokens[start + 1 : start + 17]
            window = torch.tensor([tokens[: start + 17][-17:]])
            targets = window[:, 1:].clone()
            targets[:, : 16 - len(scored)] = -1
            with torch.no_grad():
                output = run.model(window[:, :-1], targets, thresholds=[0.0, 0.0])
            total += output["cross_entropy_loss"].item() * len(scored)
    by_hand = total / sum(len(sentence.encode()) for sentence in SENTENCES) / math.log(2)
    assert full["results"]["lab_rolling"]["bits_per_byte,none"] == pytest.approx(by_hand, rel=1e-5)

    said, cheap = command.run("--tasks lab_choice,lab_rolling --budget 0.7 --limit 4 --num_fewshot 1")
    assert "threshold routing (causal)" in said and cheap["calibration"]["budget"] == 0.7
    assert cheap["average_passes"] < 2.9 and cheap["n-samples"]["lab_choice"]["effective"] == 4
    assert cheap["n-shot"]["lab_choice"] == 1
    # That is another evaluation, with a file of its own; other tasks of the same one are added to its file.
    assert json.loads((command.folder / "lm_eval_ckpt.json").read_text()) == full
    _, again = command.run("--tasks lab_choice")
    assert again["results"] == full["results"] and again["versions"] == full["versions"]


@pytest.mark.process
def test_the_command_refuses(lab, command):
    command.refuse("--tasks lab_chioce", 2, "--tasks lab_chioce is unknown; did you mean lab_choice")
    command.refuse("--tasks lab_choice --budget 3", 2, "a fraction of full compute is above 0")
    command.refuse("--tasks lab_all,lab_choice", 2, "Duplicate task 'lab_choice'")
    command.refuse("--tasks piqa", 1, "the task piqa cannot be loaded", "HF_HOME")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--tasks piqa", "--checkpoint"),
        ("--checkpoint x", "--tasks"),
        ("--checkpoint x --tasks piqa --limit 0", "--limit 0 must be at least 1"),
        ("--checkpoint x --tasks piqa --num_fewshot -1", "--num_fewshot -1 must be at least 0"),
        ("--checkpoint x --tasks piqa --include_path gone", "there is no such folder"),
        ("--checkpoint x --tasks piqa --routing topk", "depends on later tokens"),
        ("--checkpoint x --tasks piqa --bugdet 1", "did you mean --budget?"),
    ],
)
def test_flags_are_refused_with_or_without_the_harness(scripts, flags, part):
    scripts.refuse("run_lm_eval.py", flags, 2, part)


def test_the_module_is_an_alias_of_the_script(scripts):
    flags = "--checkpoint x --tasks piqa --limit 0"
    said = scripts.refuse("-m evaluation.lm_eval", flags, 2, "--limit 0 must be at least 1")
    assert said == scripts.refuse("run_lm_eval.py", flags, 2)


@pytest.mark.process
def test_without_the_harness(scripts, tmp_path):
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise ModuleNotFoundError('No module named lm_eval')")
    said = scripts.run(
        "run_lm_eval.py", "--checkpoint x --tasks piqa", 2, process=True, PYTHONPATH=f"{tmp_path}:{ROOT}"
    ).stderr
    assert said.count("\n") == 1 and "pip install -r requirements-lm-eval.txt" in said

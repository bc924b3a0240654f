"""main.py through its command line: the files of a run, and what it refuses."""

import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import open_corpus
from data.batches import Batches, contiguous_batches, validation_subset
from models import ModelConfig, make_model_from_args
from optim import checkpoint
from optim.train import derive_seed, seed_torch
from tests.conftest import TEXT, Scripts

MODELS = ["base", "but_full_depth", "cotformer_full_depth", "cotformer_full_depth_lnmid_depthemb"]
MODELS += ["mla_ln_cotformer", "pause"]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains(scripts, model):
    scripts.train(f"--model {model} --lr 1e-2")
    lines = scripts.lines(model)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8, 12]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] - 0.1
    assert lines[-1]["val_perplexity"] == pytest.approx(math.exp(lines[-1]["val_loss"]))
    summary = json.loads((scripts.folder(model) / "summary.json").read_text())
    assert summary["iterations"] == 12 and summary["train_loss"] == [line["train_loss"] for line in lines]
    assert len(summary["val_loss"]) == 3 and summary["val_steps"] == [4, 8, 12]
    assert summary["final"] == lines[-1] and summary["args"]["model"] == model
    assert summary["average_depth"] == (2 if model in ("base", "pause") else 4)


def test_losses_are_those_of_a_loop_written_by_hand(scripts):
    """Training written out again: micro-batches, clipping, AdamW, cosine, the interval's means."""
    scripts.train("--acc_steps 3 --grad_clip 0.5 --weight_decay 0.3 --lr 1e-2 --log_freq 4 --n_embd 24")
    corpus = open_corpus("shakespeare-char", data_dir=scripts.data_dir)
    args = checkpoint.load(scripts.folder() / "ckpt.pt")["args"]
    seed_torch(args["seed"], "initialisation")
    model = make_model_from_args(type("Args", (), args))
    decaying = [p for n, p in model.named_parameters() if ".c_" in n]
    others = [p for n, p in model.named_parameters() if ".c_" not in n]
    groups = [{"params": decaying, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        1e-2,
        total_steps=12,
        pct_start=0.05,
        div_factor=100,
        final_div_factor=0.05,
        cycle_momentum=False,
    )
    batches = Batches(corpus.windows("train", 16), 4, 3, seed=2)
    losses, norms, rates = [], [], []
    for step in range(12):
        parts = [model(*batches.get(step, micro))["loss"] / 3 for micro in range(3)]
        optimizer.zero_grad()
        sum(parts).backward()
        losses.append(sum(part.item() for part in parts))
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 11:
            schedule.step()
    for line, end in zip(scripts.lines(), (4, 8, 12), strict=True):
        assert line["train_loss"] == pytest.approx(np.mean(losses[end - 4 : end]), rel=1e-4)
        assert line["mean_grad_norm"] == pytest.approx(np.mean(norms[end - 4 : end]), rel=1e-3)
        assert line["max_grad_norm"] == pytest.approx(max(norms[end - 4 : end]), rel=1e-3)
        assert line["grad_norm"] == pytest.approx(norms[end - 1], rel=1e-3)
        assert line["lr"] == pytest.approx(rates[end - 1], rel=1e-9)
        assert line["tokens"] == end * 3 * 4 * 16

    model.eval()
    losses = [model(*batch)["loss"].item() for batch in contiguous_batches(corpus.windows("val", 16), 1)]
    assert scripts.lines()[-1]["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert scripts.lines()[-1]["val_tokens"] == len(losses) * 16


def test_intermediate_evaluations_are_on_24_fixed_batches(scripts):
    scripts.train("--batch_size 2")
    corpus = open_corpus("shakespeare-char", data_dir=scripts.data_dir)
    assert [line["val_tokens"] for line in scripts.lines() if "val_loss" in line][:2] == [24 * 2 * 16] * 2
    subset = validation_subset(corpus.windows("val", 16), 2, n_batches=24, seed=derive_seed(2, "validation"))
    assert len(subset) == 24


def test_accumulation_equals_a_larger_batch(scripts, tmp_path):
    scripts.train("--batch_size 2 --acc_steps 4")
    other = Scripts(scripts.data_dir, tmp_path / "other")
    other.train("--batch_size 8 --acc_steps 1")
    for one, two in zip(scripts.lines(), other.lines(), strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)


@pytest.mark.process
def test_the_same_command_gives_the_same_bits(scripts, tmp_path):
    scripts.train("--dropout 0.2 --model cotformer", process=True)
    other = Scripts(scripts.data_dir, tmp_path / "other")
    other.train("--dropout 0.2 --model cotformer --data_in_ram")
    first, second = (
        checkpoint.load(s.folder("cotformer_full_depth") / "ckpt.pt")["model"] for s in (scripts, other)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("opt", ["sgd", "adafactor"])
@pytest.mark.parametrize("scheduler", ["linear", "none"])
def test_other_optimizers_and_schedules(scripts, opt, scheduler):
    scripts.train(f"--opt {opt} --scheduler {scheduler} --lr 1e-2 --bias true --positional_encoder none")
    assert scripts.lines()[-1]["train_loss"] < scripts.lines()[0]["train_loss"]


def test_samples_at_evaluations(scripts):
    scripts.train("--eval_seq_prefix the")
    samples = [line["sample"] for line in scripts.lines() if "val_loss" in line]
    assert len(samples) == 3 and all(sample.startswith("the") and len(sample) == 3 + 64 for sample in samples)


def test_a_prefix_the_tokeniser_cannot_write_is_noted(scripts):
    said = scripts.train("--eval_seq_prefix @@@").stdout
    assert "note: no text samples" in said and "'@'" in said
    assert "sample" not in scripts.lines()[-1]


def test_a_diverging_run_stops_with_its_last_checkpoint_intact(scripts):
    done = scripts.train(
        "--opt sgd --lr 1e12 --scheduler none --save_checkpoint_freq 1 --iterations 50", code=1
    )
    assert "training has stopped before this update" in done.stderr and "--grad_clip" in done.stderr
    path, content = checkpoint.newest(scripts.folder())
    assert path.name != "ckpt.pt"
    assert all(weight.isfinite().all() for weight in content["model"].values())
    assert not (scripts.folder() / "summary.json").exists()


def test_output_without_a_terminal_is_plain_lines(scripts):
    done = scripts.train()
    assert done.stderr == "" and "\r" not in done.stdout
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("step 4/12")]
    for part in ("loss ", "val ", "perplexity ", "lr ", "grad ", "tok/s", "left"):
        assert part in line
    assert "2 threads" in done.stdout or "1 threads" in done.stdout
    assert "computed in float32" in done.stdout


def test_a_resumed_run_continues_its_wandb_run(scripts):
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    scripts.train("--wandb --exp_name logged", **env)
    scripts.train("--wandb --exp_name logged --iterations 16", **env)
    folder = scripts.folder()
    name = (folder / "wandb_run_id.txt").read_text()
    logged = list((folder / "wandb").glob("offline-run-*"))
    assert len(logged) == 2 and all(path.name.endswith(name) for path in logged)


@pytest.mark.process  # W&B keeps the settings of a process
def test_wandb_that_does_not_start(scripts, tmp_path, monkeypatch):
    said = scripts.train("--wandb", 1, process=True, WANDB_MODE="of").stderr
    assert said.count("\n") == 1 and "'online', 'offline'" in said and "type=literal_error" not in said
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb fails
    scripts.refuse("main.py", scripts.train_flags("--wandb"), 1, "W&B does not start (import of wandb")


def test_wandb_that_fails_later(scripts, monkeypatch):
    """Training goes on without it."""

    class Run:
        def log(self, line, step):
            raise ConnectionResetError("the service has gone")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: Run()))
    said = scripts.train("--wandb").stdout
    assert said.count("warning: W&B has failed (the service has gone); training continues without it") == 1
    assert "finished:" in said


def test_bytes_that_are_no_utf8(data_dir, tmp_path):
    """In a folder, and in the text of the samples: they are harmless, from the start to the summary."""
    latin = os.fsdecode(b"l\xe9")
    scripts = Scripts(data_dir, tmp_path / latin)
    corpus = tmp_path / f"{latin}.jsonl"
    corpus.write_text("".join(f'{{"text": "{line}"}}\n' for line in TEXT.splitlines()))
    flags = f"--dataset files:{corpus} --tokenizer bytes --vocab_size 320 --eval_seq_prefix {latin}"
    scripts.train(f"{flags} --save_checkpoint_freq 6")
    (summary,) = scripts.results.rglob("summary.json")
    assert json.loads(summary.read_text())["args"]["eval_seq_prefix"] == latin
    scripts.run("eval.py", f"--checkpoint {summary.parent}")
    scripts.run("checkpoints.py", f"convert {summary.parent} {tmp_path / latin / 'x.dcp'}")
    scripts.run("export.py", f"--checkpoint {tmp_path / latin / 'x.dcp'} --output {tmp_path / latin / 'y'}")
    scripts.run("generate.py", f"--checkpoint {tmp_path / latin / 'y'} --prompt {latin} --max_new_tokens 2")


@pytest.mark.process
def test_compile(scripts, tmp_path):
    scripts.train("--compile --exp_name compiled --iterations 4")
    other = Scripts(scripts.data_dir, tmp_path / "other")
    other.train("--exp_name eager --iterations 4")
    assert scripts.lines()[-1]["train_loss"] == pytest.approx(other.lines()[-1]["train_loss"], rel=1e-4)
    compiled, eager = (checkpoint.load(s.folder() / "ckpt.pt")["model"] for s in (scripts, other))
    assert compiled.keys() == eager.keys()  # no _orig_mod


def test_float32_and_bfloat16(scripts):
    done = scripts.train("--dtype torch.bfloat16")
    from hardware import cpu_multiplies_bfloat16

    assert (
        "computed in bfloat16" if cpu_multiplies_bfloat16() else "computed in float32: this"
    ) in done.stdout
    weights = checkpoint.load(scripts.folder() / "ckpt.pt")["model"].values()
    assert {weight.dtype for weight in weights} == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        ("--vocab_size 8", 2, ["has 28 tokens", "--vocab_size 8", "give --vocab_size 64"]),
        ("--tokenizer gpt2", 2, ["shakespeare-char comes in char only"]),
        ("--sequence_length 100000", 1, ["too few for a sequence of 100000"]),
        (
            "--dataset slimpajama",
            1,
            ["slimpajama is not prepared", "python prepare_data.py --dataset slimpajama"],
        ),
        ("--model cotfromer", 2, ["did you mean cotformer?"]),
        ("--results_base_folder /proc/nowhere", 1, ["cannot write /proc/nowhere"]),
    ],
)
def test_refusals(scripts, flags, code, parts):
    done = scripts.train(flags, code=code)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there(scripts, device):
    scripts.refuse(
        "main.py", scripts.train_flags(f"--device {device}"), 2, f"--device {device}", "--device auto"
    )


def test_scripts_on_a_checkpoint_work_in_one_process(scripts):
    scripts.train("--iterations 2")
    done = scripts.run("eval.py", f"--checkpoint {scripts.folder()}", 2, WORLD_SIZE="2")
    assert "torchrun started 2 processes" in done.stderr and "run it with python" in done.stderr


def test_fields_of_the_model_are_flags():
    """Every field that ModelConfig reads from the namespace is a flag."""
    from config import parse_args

    assert ModelConfig.__dataclass_fields__.keys() <= vars(parse_args([])).keys()


def test_a_refused_training_leaves_no_folders(scripts, tmp_path):
    flags = f"--dataset files:{tmp_path}/nothing*.txt --data_dir {tmp_path / 'new' / 'data'}"
    scripts.refuse("main.py", scripts.train_flags(flags), 2, "no file matches")
    scripts.refuse("main.py", scripts.train_flags("--use_pretrained nowhere.pt"), 2, "nowhere.pt")
    assert not scripts.results.exists() and not (tmp_path / "new").exists()


def test_names_of_corpora_and_steps_of_a_preparation(scripts):
    scripts.refuse("prepare_data.py", "pydoc", 2, "did you mean --dataset pydoc?")
    scripts.refuse("prepare_data.py", "shard --dataset pydoc", 2, "'shard' is unknown; did you mean shards?")
    scripts.refuse("prepare_data.py", "openwebtext2 tokenise", 2, "did you mean tokenize?")

"""eval.py, generate.py and plot_curves.py through their command lines."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data import open_corpus
from optim import checkpoint
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "lncot_linear_lnmid"


@pytest.fixture
def trained(trained, tmp_path):
    return trained("--save_checkpoint_freq 4", into=tmp_path / "exps")


def summary(folder, name="ckpt"):
    return json.loads((folder / f"eval_summary_{name}.json").read_text())


def test_the_full_validation_set(trained):
    folder = trained.folder()
    done = trained.run("eval.py", f"--checkpoint {folder}")
    result = summary(folder)
    corpus = open_corpus("shakespeare-char", data_dir=trained.data_dir)
    windows = (corpus.size("val") - 1) // 16
    assert result["tokens"] == windows * 16 and result["batches"] == math.ceil(windows / 4)
    assert result["loss"] == pytest.approx(trained.lines()[-1]["val_loss"], rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    full = result["batch_losses"] if windows % 4 == 0 else result["batch_losses"][:-1]
    error = statistics.stdev(full) / math.sqrt(len(full))
    assert result["loss_standard_error"] == pytest.approx(error)
    low, high = result["perplexity_interval_95"]
    assert low == pytest.approx(math.exp(result["loss"] - 1.96 * error))
    assert high == pytest.approx(math.exp(result["loss"] + 1.96 * error))
    assert 0 < result["accuracy"] < 1 and f"{result['perplexity']:.3f}" in done.stdout


def test_flags_given_override_those_of_the_run(trained, tmp_path):
    folder = trained.folder()
    trained.run(
        "eval.py",
        f"--checkpoint {folder / 'ckpt_8.pt'} --eval_seq_length 40 --eval_sample_size 400 --batch_size 3 "
        f"--output_dir {tmp_path / 'out'}",
    )
    result = summary(tmp_path / "out", "ckpt_8_eval_seq_length=40_eval_sample_size=400")
    assert (result["sequence_length"], result["batch_size"], result["step"]) == (40, 3, 8)
    assert (result["tokens"], result["batches"]) == (400, 4)
    assert not (folder / "eval_summary_ckpt_8.json").exists()


def test_names_say_what_was_evaluated(trained):
    """The full evaluation's summary stays. Flags that are the run's, or say how to compute, are not named."""
    folder = trained.folder()
    trained.run("eval.py", f"--checkpoint {folder} --dataset shakespeare-char --batch_size 3 --device cpu")
    full = summary(folder)
    trained.run("eval.py", f"--checkpoint {folder} --eval_sample_size 10")
    trained.run("eval.py", f"--checkpoint {folder} --sequence_length 8 --dataset counting", 2)
    assert summary(folder) == full and summary(folder, "ckpt_eval_sample_size=10")["tokens"] == 16
    names = [path.name for path in folder.glob("eval_summary*")]
    assert len(names) == 2


def test_the_most_advanced_checkpoint_of_a_folder_is_taken(trained):
    (trained.folder() / "ckpt.pt").unlink()
    assert "ckpt_8.pt (step 8)" in trained.run("eval.py", f"--checkpoint {trained.folder()}").stdout


def test_a_checkpoint_of_the_released_code(trained, tmp_path):
    """Their layout: weights under "model", with prefixes and buffers, and the flags in summary.json."""
    folder = tmp_path / "released"
    folder.mkdir()
    args = json.loads((GOLDEN / "case.json").read_text())["config"]
    weights = {
        f"module._orig_mod.{name}": w.float() for name, w in load_file(GOLDEN / "weights.safetensors").items()
    }
    torch.save({"model": weights, "itr": 40000, "optimizer": {}, "scheduler": {}}, folder / "ckpt.pt")
    (folder / "summary.json").write_text(json.dumps({"args": {**args, "dataset": "shakespeare-char"}}))
    flags = f"--checkpoint {folder} --data_dir {trained.data_dir} --dtype float32"
    done = trained.run("eval.py", f"{flags} --batch_size 4")
    assert "step 40000" in done.stdout and summary(folder)["average_depth"] == 11
    first = trained.run(
        "generate.py", f"{flags} --tokenizer bytes --prompt ! --max_new_tokens 5 --vocab_size 97", 0
    )
    assert first.stdout.startswith("!")

    (folder / "summary.json").unlink()
    trained.refuse("eval.py", flags, 2, "no summary.json next to it", "give --model")
    given = f"{flags} --model ln_cotformer --n_layer 5 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3 "
    given += "--n_embd 32 "
    given += (
        "--n_head 4 --vocab_size 97 --depth_embedding linear_learned --sequence_length 16 --batch_size 4 "
    )
    given += "--dataset shakespeare-char"
    trained.run("eval.py", given)
    trained.refuse(
        "eval.py", f"{given} --n_embd 64", 2, "do not fit --model cotformer_full_depth_lnmid_depthemb"
    )


def test_evaluation_refuses(trained, tmp_path):
    folder = trained.folder()
    trained.refuse("eval.py", "--batch_size 3", 2, "--checkpoint")
    trained.refuse("eval.py", f"--checkpoint {tmp_path / 'gone'}", 2, "there is no such file or folder")
    trained.refuse("eval.py", f"--checkpoint {tmp_path}", 2, "holds no checkpoint")
    trained.refuse("eval.py", f"--checkpoint {folder} --eval_seq_len 3", 2, "did you mean --eval_seq_length?")
    trained.refuse("eval.py", f"--checkpoint {folder} --batch_size 0", 2, "must be at least 1")
    (tmp_path / "broken.pt").write_bytes(b"broken")
    trained.refuse("eval.py", f"--checkpoint {tmp_path / 'broken.pt'}", 1, "is damaged or no checkpoint")


def test_another_tokeniser_is_refused(scripts):
    scripts.train()
    text = scripts.data_dir / "shakespeare-char"
    for path in text.iterdir():
        if path.name != "input.txt":
            path.unlink()
    (text / "input.txt").write_text((text / "input.txt").read_text().replace("cat", "CAT"))
    said = scripts.run("eval.py", f"--checkpoint {scripts.folder()}", 2).stderr
    assert "but the model in" in said and "was trained on char (28) tokens" in said


def test_generation(trained):
    flags = f"--checkpoint {trained.folder()} --prompt cat --max_new_tokens 30"
    texts = [trained.run("generate.py", f"{flags} --seed {seed}").stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("cat") and len(texts[0].rstrip("\n")) <= 33
    greedy = [
        trained.run("generate.py", f"{flags} {how} --seed {seed}").stdout
        for how, seed in (("--temperature 0 --cuda_graphs", 1), ("--top_k 1", 2), ("--top_p 0.0001", 3))
    ]
    assert len(set(greedy)) == 1


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--temperature -1", "--temperature -1.0 must be 0 or more"),
        ("--temperature nan", "--temperature"),
        ("--top_k 0", "--top_k 0 must be at least 1"),
        ("--top_p 1.5", "--top_p 1.5 must be above 0 and at most 1"),
        ("--cuda_graphs --no_cache", "--cuda_graphs needs the cache: leave out --no_cache"),
        ("--max_new_tokens 0", "--max_new_tokens 0 must be at least 1"),
        ("--prompt @", "'@', which is not among the 28 characters"),
        ("", "the prompt is empty"),
    ],
)
def test_generation_refuses(trained, flags, part):
    trained.refuse("generate.py", f"--checkpoint {trained.folder()} {flags}", 2, part)


def test_curves(trained, tmp_path):
    folder = trained.folder()
    path = tmp_path / "figures" / "curves.png"
    trained.run("plot_curves.py", f"{folder} --output {path}")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    trained.run("plot_curves.py", f"{folder} {folder} --labels one two --output {tmp_path / 'two.pdf'}")
    assert (tmp_path / "two.pdf").read_bytes().startswith(b"%PDF")
    trained.refuse(
        "plot_curves.py", f"{folder} --output x.bmp", 2, "the suffix must be one of .png, .pdf, .svg"
    )
    trained.refuse("plot_curves.py", f"{folder} {folder}", 2, "as many different labels")
    trained.refuse("plot_curves.py", f"{tmp_path}", 1, "metrics.jsonl is missing")
    trained.refuse("plot_curves.py", f"{folder} --outptu x.png", 2, "did you mean --output?")
    trained.refuse("plot_curves.py", "", 2, "the following arguments are required: run")
    trained.refuse("plot_curves.py", f"{folder} --output {path}/x.png", 1, "cannot write")


def test_a_checkpoint_holds_plain_data_only(trained):
    content = checkpoint.load(trained.folder() / "ckpt.pt")
    assert content["format"] == "cotformer-lab/1" and content["tokenizer"]["name"] == "char"
    assert content["versions"].keys() == {"python", "torch", "numpy"}


def test_a_task_is_trained_and_scored_in_and_out_of_distribution(scripts, tmp_path):
    tiny = scripts.train_flags().replace("--dataset shakespeare-char --vocab_size 64", "--dataset counting")
    flags = tiny.replace("--sequence_length 16", "--sequence_length 64") + " --vocab_size 256"
    scripts.run("main.py", flags)
    (folder,) = (scripts.results / "counting" / "base").iterdir()
    done = scripts.run("eval.py", f"--checkpoint {folder} --batch_size 256")
    result = summary(folder)
    assert set(result["splits"]) == set(open_corpus("counting").test_splits)
    assert any(split.endswith("_ood") for split in result["splits"])
    for split, scored in result["splits"].items():
        assert split in done.stdout
        assert 0 <= scored["sequence_accuracy"] <= scored["accuracy"] <= 1
        inputs, targets = open_corpus("counting").windows(split, 64).gather(range_of(split))
        assert scored["tokens"] == int((targets != -1).sum()) < inputs.numel()


def range_of(split):
    return np.arange(open_corpus("counting").windows(split, 64).count)


def test_a_corpus_of_local_files_is_trained_on_and_evaluated(scripts, tmp_path):
    """Slashes and stars of its pattern are in no file name."""
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"The cat sat on mat {number} and thought again.\n" * 40)
    flags = scripts.train_flags(f"--dataset files:{tmp_path}/*.txt --tokenizer bytes")
    scripts.run("main.py", flags.replace("--vocab_size 64", "--vocab_size 320"))
    (dataset,) = scripts.results.iterdir()
    (folder,) = (dataset / "base").iterdir()
    scripts.run("eval.py", f"--checkpoint {folder}")
    assert 1 < summary(folder)["perplexity"] < 400
    assert scripts.run("generate.py", f"--checkpoint {folder} --prompt The --max_new_tokens 5").stdout

"""export.py, and its folder as every command's --checkpoint."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from data.tokenizers import decode, make_tokenizer
from evaluation.restore import restore
from models.generation import generate
from optim import checkpoint
from tests.conftest import ROOT
from tests.data.test_tokenizers import SENTENCE, train_word_tokenizer

ADM = (
    "--model adm --n_layer 3 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3 --depth_embedding linear_learned"
)


def export(scripts, source, target):
    return scripts.run("export.py", f"--checkpoint {source} --output {target}")


@pytest.mark.process
def test_a_fresh_process_loads_it_in_three_lines(scripts, tmp_path):
    scripts.train(f"{ADM} --save_checkpoint_freq 4")
    (source,) = scripts.results.glob("*/*/*/ckpt.pt")
    out = tmp_path / "out" / "model"
    assert f"written: {out}" in export(scripts, source.parent, out).stdout
    about = json.loads((out / "config.json").read_text())
    assert about["step"] == 12 and about["tokenizer"]["name"] == "char" and about["args"]["lr"] > 0
    program = (
        "import models, torch\n"
        f"model = models.from_pretrained({str(out)!r})\n"
        f"torch.save(model.state_dict(), {str(tmp_path / 'weights.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    trained = checkpoint.load(source)["model"]
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name]) for name in weights)

    results = []
    for path in (source, out):
        scripts.run("eval.py", f"--checkpoint {path} --output_dir {tmp_path / 'eval'}")
        results.append(json.loads((tmp_path / "eval" / f"eval_summary_{path.stem}.json").read_text()))
    assert results[0]["batch_losses"] == results[1]["batch_losses"] and results[1]["step"] == 12
    flags = "--prompt cat --max_new_tokens 20 --budget 0.8"
    texts = [scripts.run("generate.py", f"--checkpoint {path} {flags}").stdout for path in (source, out)]
    assert texts[0] == texts[1]


def test_a_checkpoint_of_fsdp_and_refusals(scripts, tmp_path):
    scripts.train()
    (source,) = scripts.results.glob("*/*/*/ckpt.pt")
    folder = tmp_path / "ckpt.dcp"
    scripts.run("-m optim.checkpoint", f"convert {source} {folder}")
    export(scripts, folder, tmp_path / "one")
    export(scripts, source, tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    flags = f"--checkpoint {source} --output {tmp_path / 'one'}"
    scripts.refuse("export.py", flags, 2, "one exists; give another name")
    scripts.refuse("export.py", f"--output {tmp_path / 'x'}", 2, "--checkpoint")
    (tmp_path / "one" / "model.safetensors").write_bytes(one[:-1])
    scripts.refuse(
        "eval.py", f"--checkpoint {tmp_path / 'one'}", 1, "its checksum is not that in config.json"
    )


def test_a_model_takes_its_tokenizer_along(scripts, tmp_path):
    """Moved, with everything else deleted, it writes text and evaluates a text of one's own."""
    home = tmp_path / "home"
    home.mkdir()
    train_word_tokenizer(home / "tokenizer.json", "WordPiece")
    (home / "text.txt").write_text(f"{SENTENCE}\n" * 400)
    flags = f"--dataset files:{home}/text.txt --tokenizer {home}/tokenizer.json --data_dir {home}/data"
    scripts.train(f"{flags} --results_base_folder {home}/exps --iterations 2")
    (run,) = home.glob("exps/*/*/*/")
    scripts.run("export.py", f"--checkpoint {run} --output {home}/released")
    assert (
        json.loads((home / "released" / "config.json").read_text())["tokenizer"]["path"] == "tokenizer.json"
    )
    moved = tmp_path / "moved"
    (home / "released").rename(moved)
    shutil.rmtree(home)
    at = f"--checkpoint {moved} --data_dir {tmp_path}/data"
    said = scripts.run("generate.py", f"{at} --prompt sat --max_new_tokens 8 --temperature 0").stdout
    tokenizer = make_tokenizer(str(moved / "tokenizer.json"))
    run = restore(moved, {"device": "cpu"})
    drawn = generate(run.model, [tokenizer.encode("sat").tolist()], 8, n_tokens=35, temperature=0)
    ids = [*tokenizer.encode("sat"), *(int(step.tokens) for step in drawn)]
    assert said == f"{decode(tokenizer, ids)}\n"
    (tmp_path / "own.txt").write_text(f"{SENTENCE}\n" * 50)
    assert "perplexity" in scripts.run("eval.py", f"{at} --dataset files:{tmp_path}/own.txt").stdout
    (moved / "tokenizer.json").write_text("{}")
    scripts.refuse("generate.py", f"{at} --prompt sat", 1, "is no longer at tokenizer.json; copy it back")


def test_without_its_tokenizer_a_model_is_exported_with_a_warning(scripts, tmp_path):
    train_word_tokenizer(tmp_path / "tokenizer.json", "WordPiece")
    (tmp_path / "text.txt").write_text(f"{SENTENCE}\n" * 400)
    flags = f"--dataset files:{tmp_path}/text.txt --tokenizer {tmp_path}/tokenizer.json"
    scripts.train(f"{flags} --data_dir {tmp_path}/data --iterations 1")
    (run,) = scripts.results.glob("*/*/*/")
    for path in [tmp_path / "tokenizer.json", *tmp_path.glob("data/*/tokenizer.json")]:
        path.unlink()
    said = export(scripts, run, tmp_path / "released").stdout
    assert "warning: the folder will lack its tokenizer: the tokenizer.json of this model" in said
    assert {path.name for path in (tmp_path / "released").iterdir()} == {"model.safetensors", "config.json"}


def test_local_files_are_evaluated_in_the_tokens_of_the_model(scripts, tmp_path):
    (tmp_path / "text.txt").write_text(f"{SENTENCE}\n" * 400)
    flags = f"--dataset files:{tmp_path}/text.txt --vocab_size 320 --iterations 1"
    scripts.train(f"{flags} --tokenizer bytes --data_dir {tmp_path}/data")
    (run,) = scripts.results.glob("*/*/*/")
    export(scripts, run, tmp_path / "released")
    (tmp_path / "own.txt").write_text(f"{SENTENCE}\n" * 50)
    about = json.loads((tmp_path / "released" / "config.json").read_text())
    about["args"]["tokenizer"] = None  # as of a corpus that is in bytes by itself
    (tmp_path / "released" / "config.json").write_text(json.dumps(about))
    at = f"--checkpoint {tmp_path}/released --data_dir {tmp_path}/data"
    assert "perplexity" in scripts.run("eval.py", f"{at} --dataset files:{tmp_path}/own.txt").stdout


def test_the_module_is_an_alias_of_the_script(scripts):
    said = scripts.refuse("-m optim.export", "--output x", 2, "--checkpoint")
    assert said == scripts.refuse("export.py", "--output x", 2)

"""export.py, and its folder as every command's --checkpoint."""

import json
import subprocess
import sys

import pytest
import torch

from optim import checkpoint
from tests.conftest import ROOT

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


def test_the_module_is_an_alias_of_the_script(scripts):
    said = scripts.refuse("-m optim.export", "--output x", 2, "--checkpoint")
    assert said == scripts.refuse("export.py", "--output x", 2)

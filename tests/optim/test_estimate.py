"""What a training takes, against what a step allocates; and how main.py answers with it."""

import re
import weakref
from argparse import Namespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import config
from distributed import choose_precision
from models import make_model_from_args
from optim.estimate import HEAP, estimate_memory
from optim.resume import exactness
from tests.conftest import TINY

CPU = torch.device("cpu")
SIZES = "--n_layer 3 --n_embd 64 --n_head 4 --n_repeat 3 --sequence_length 64 --batch_size 4 --acc_steps 1"


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that are alive, at their largest."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage):
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, which, size):
        self._known.discard(which)
        self.now -= size


@pytest.mark.parametrize("kept", ["none", "repeat", "block"])
@pytest.mark.parametrize(
    "model",
    ["base", "but", "ln_cotformer", "adm", "adaptive_but", "stick_breaking", "pondernet", "mla", "pause"],
)
def test_activations_are_those_of_a_step(model, kept):
    flags = f"{SIZES} --vocab_size 320 --model {model} --activation_checkpointing {kept} --dtype float32"
    args = config.parse_args(flags.split())
    network = make_model_from_args(args).train()
    tokens = torch.zeros(args.batch_size, args.sequence_length, dtype=torch.long)
    # Nearly all of the tokens, as all of them would take shorter ways.
    routed = {"length_factors": [0.99] * (args.n_repeat - 1)} if network.config.variant.routed else {}
    with Allocated() as allocated:
        network(tokens, tokens, **routed)["loss"].backward()
    parts = estimate_memory(args, choose_precision(args.dtype, CPU))
    estimated = parts["weights"] + (parts["activations"] + parts["logits"]) / HEAP[kept]
    assert 0.8 < estimated / allocated.peak < 1.4


def test_parts_of_the_memory_estimate():
    def parts(flags):
        args = config.parse_args([*SIZES.split(), *flags.split()])
        return estimate_memory(args, choose_precision("torch.float32", CPU))

    adamw, sgd = parts("--vocab_size 50304"), parts("--vocab_size 50304 --opt sgd")
    assert adamw["weights"] == adamw["gradients"] == sgd["optimiser state"]
    assert adamw["optimiser state"] == 2 * sgd["optimiser state"]
    kept = parts("--vocab_size 50304 --save_checkpoint_freq 10")
    assert kept["checkpoint copy"] == 3 * kept["weights"] > adamw["checkpoint copy"]
    assert parts("--loss plain")["logits"] > 4 * 64 * 50304 * 8 > parts("")["logits"] / HEAP["none"]
    assert parts("--batch_size 64")["activations"] == pytest.approx(16 * parts("")["activations"], rel=1e-6)


def test_a_training_that_does_not_fit_is_refused_with_flags_that_fit(scripts):
    huge = "--batch_size 4194304 --n_layer 8"
    said = scripts.refuse("main.py", scripts.train_flags(huge), 2, "GB free", "or --yes")
    assert not scripts.results.exists()
    advice = re.search(r"give (--batch_size \d+ --acc_steps \d+) \(", said)
    assert advice, said
    batch, steps = map(int, re.findall(r"\d+", advice[1]))
    assert batch * steps == 2 * 4194304
    assert "warning" in scripts.train(f"{huge} --dry_run").stdout
    assert "warning" not in scripts.train(f"{huge} {advice[1]} --dry_run").stdout


def test_a_model_that_never_fits(scripts):
    flags = scripts.train_flags("--n_embd 65536 --n_head 512 --batch_size 1")
    scripts.refuse("main.py", flags, 2, "give --n_embd ", "--activation_checkpointing block")


def test_a_dry_run_says_what_a_training_takes_and_leaves_nothing(scripts, tmp_path):
    said = scripts.train(f"--dry_run --model mla --data_dir {tmp_path / 'no'} --lr 0.01").stdout
    for part in (
        "mla_ln_cotformer: ", " parameters, on cpu", "multiply-accumulates per token",
        "128 tokens per step; 1,536 tokens in 12 steps", "FLOPs) forward and backward", "estimated memory: ",
        "run folder: ", "note: the cache keeps 224 numbers", "an interrupted run resumes bit for bit on this",
    ):  # fmt: skip
        assert part in said, (part, said)
    assert not scripts.results.exists() and not (tmp_path / "no").exists()
    assert "dry_run" not in TINY


def test_how_exactly_a_run_resumes_on_a_gpu_is_said():
    flags = {"model": "adm", "compile": "block"}
    strict, fast = (exactness(Namespace(deterministic=on, **flags), on_gpu=True) for on in (True, False))
    assert "resumes bit for bit on as many GPUs" in strict and "--deterministic false" in strict
    assert "resumes up to rounding" in fast and "--deterministic true" in fast
    step = exactness(Namespace(model="adm", compile="step", deterministic=True), on_gpu=True)
    assert "resumes up to rounding: --compile step" in step

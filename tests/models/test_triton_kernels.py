"""Triton's kernels without a GPU: interpreted against their plain forms, and compiled.

Triton decides when it is imported whether it interprets: tests of what kernels compute run in a process of
their own, which `test_kernels_in_triton_s_interpreter` starts.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from models import losses, triton_kernels
from models.losses import linear_cross_entropy
from tests.conftest import ROOT
from tests.models.reference import make

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: see requirements-triton.txt"
)
INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in a process whose Triton interprets kernels"
)


@pytest.mark.process
@NEEDS_TRITON
def test_kernels_in_triton_s_interpreter():
    files = [
        str(Path(__file__).with_name(f"test_{name}.py"))
        for name in ("triton_kernels", "fused_rotation", "pass_store")
    ]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not process", "-k", "kernel"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"(\d+) passed, \d+ deselected.*", summary), done.stdout


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [4, 16, 4096])
def test_cross_entropy(dtype, block, monkeypatch):
    monkeypatch.setattr(triton_kernels, "BLOCK", block)
    torch.manual_seed(1)
    work = torch.promote_types(dtype, torch.float32)
    for width in (2, 11, 64):
        logits = (8 * torch.randn(5, width + 3)).to(dtype)[:, :width]
        logits[1] += 300  # exp would overflow
        logits[2, : width - 1] = -torch.inf  # whole blocks of them
        target = torch.tensor([0, 1, width - 1, width // 2, width - 1])
        each, given = torch.empty(5, dtype=work), logits.clone()
        triton_kernels.score(given, target, each, gradient=False)
        assert torch.equal(given, logits)
        tolerance = 1e-6 if work == torch.float32 else 1e-14
        expected = F.cross_entropy(logits.to(work), target, reduction="none")
        torch.testing.assert_close(each, expected, rtol=tolerance, atol=tolerance)
        triton_kernels.score(given, target, each, gradient=True)
        slope = logits.to(work).softmax(-1) - F.one_hot(target, width)
        digits = torch.finfo(dtype).eps  # the interpreter cuts off where a GPU rounds
        torch.testing.assert_close(given, slope.to(dtype), rtol=2 * digits, atol=2 * digits)
        torch.testing.assert_close(each, expected, rtol=tolerance, atol=tolerance)


@INTERPRETED
def test_cross_entropy_of_nan_is_nan():
    logits = torch.randn(2, 9)
    logits[1, 3] = torch.nan
    each = torch.empty(2)
    triton_kernels.score(logits, torch.tensor([0, 1]), each, gradient=True)
    assert each.isnan().tolist() == [False, True] and logits[1].isnan().all() and not logits[0].isnan().any()


@pytest.fixture
def loss_by_kernel(monkeypatch):
    monkeypatch.setattr(losses, "_runs_fused", lambda logits: True)
    calls = []
    score = triton_kernels.score
    monkeypatch.setattr(triton_kernels, "score", lambda *given: calls.append(given) or score(*given))
    return calls


@INTERPRETED
def test_gradients_of_the_loss_are_those_of_finite_differences(loss_by_kernel):
    torch.manual_seed(3)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, losses.IGNORED, 6, 2, 2])
    token_weights = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def total(x, weight, token_weights):
        return linear_cross_entropy(x, weight, targets, token_weights, 2)[0]

    assert torch.autograd.gradcheck(total, (x, weight, token_weights))
    assert loss_by_kernel


@INTERPRETED
@pytest.mark.parametrize("model", ["ln_cotformer", "pondernet"])
def test_a_step_with_the_loss_by_kernel(model, loss_by_kernel):
    idx, targets = torch.randint(0, 31, (2, 2, 9))
    found = []
    for loss in ("chunked", "plain"):
        network = make(model, loss=loss).train()
        value = network(idx, targets)["loss"]
        value.backward()
        found.append((value.detach(), {name: weight.grad for name, weight in network.named_parameters()}))
    assert loss_by_kernel
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


def test_without_a_compiler_no_kernel_is_launched(monkeypatch, caplog):
    """As on nodes without gcc or Python's headers, where Triton is installed but cannot build kernels."""

    class Kernel:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_kernels, "triton", triton_kernels)
    monkeypatch.setattr(triton_kernels, "score_row", Kernel(), raising=False)
    triton_kernels._can_be_built.cache_clear()
    assert not any(triton_kernels.has_kernel(torch.randn(2, 3)) for _ in range(3))
    assert [record.getMessage() for record in caplog.records] == [
        "Triton cannot build kernels, and PyTorch's slower operations are used: Failed to find C compiler"
    ]
    triton_kernels._can_be_built.cache_clear()


# Prints the instructions that read and write the GPU's memory. argv: compute capability.
COMPILE = """
import re, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from models.triton_kernels import add_token, score_row, turn_token

def instructions(kernel, signature, constants, aligned):
    place = len(kernel.arg_names) - len(constants)
    signature |= dict.fromkeys(kernel.arg_names[place:], "constexpr")
    constants = {(place + number,): value for number, value in enumerate(constants)}
    source = ASTSource(kernel, signature, constants, {path: [["tt.divisibility", 16]] for path in aligned})
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    assert made.asm["cubin"]
    print(*sorted(set(re.findall(r"(?:ld|st)\\.global[.\\w]+", made.asm["ptx"]))))

tables = {"cos": "*fp32", "sin": "*fp32", "length": "i32", "rows": "i32"}
aligned = [(0, i) for i in range(6)] + [(1, i, j) for i in range(6) for j in range(3)] + [(2,), (3,)]
pointers, strides = ("*bf16",) * 6, (("i32",) * 3,) * 6
turned = {"tensors": pointers, "strides": strides, **tables}
instructions(turn_token, turned, (3, 2, True, 12, 64, 16, 64), aligned)
added = {"tensors": pointers, "strides": strides, "start": "i32"}
instructions(add_token, added, (12, 64, 16, 64, True), aligned[:-2])
scores = {"logits": "*bf16", "target": "*i64", "each": "*fp32", "stride": "i32"}
instructions(score_row, scores, (50304, True, 4096), [(i,) for i in range(4)])
"""


@pytest.mark.process
@NEEDS_TRITON
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(capability, tmp_path):
    """Without one. They move 16 bytes at a time."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    turned, added, scored = (line.split() for line in done.stdout.splitlines())
    assert turned == added == ["ld.global.v4.b32", "st.global.v4.b32"]
    # A target and a loss are single numbers.
    assert scored == ["ld.global.b64", "ld.global.v4.b32", "st.global.b32", "st.global.v4.b32"]

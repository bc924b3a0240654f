"""The fused rotation against the formula, forward and backward, in both its forms.

The kernel runs where Triton interprets it, in a process that `test_triton_kernels.py` starts.
"""

import pytest
import torch

from models import embeddings, fused_rotation
from models.embeddings import Rotary, rotate_parts
from models.fused_rotation import FusedRotation
from models.language_model import LanguageModel
from tests.models.reference import RESERVED, make
from tests.models.test_triton_kernels import INTERPRETED

FORMS = ["product", pytest.param("kernel", marks=INTERPRETED)]
TOLERANCES = {  # the interpreter cuts digits off where a GPU rounds
    torch.float64: {"rtol": 1e-14, "atol": 1e-14},
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}
SIZES = [(2, 3, 12, 64), (1, 5, 3, 6), (2, 4, 1, 2), (2, 2, 5, 160), (3, 1, 2, 8), (2, 0, 2, 4)]  # B, n, H, D


@pytest.fixture(autouse=True)
def fused_on_the_cpu(monkeypatch, request):
    monkeypatch.setattr(embeddings, "_runs_fused", lambda x: not torch.compiler.is_compiling())
    form = request.node.callspec.params.get("form") if hasattr(request.node, "callspec") else None
    monkeypatch.setattr(fused_rotation, "has_kernel", lambda x: form == "kernel")


def projection(shape, width, dtype):
    """(*shape, width) as a part of something wider: rows are not one after another in memory."""
    x = torch.randn(*shape, width + 4, dtype=dtype)[..., 2:-2]
    return x.detach().requires_grad_()


def table(shape, size, dtype):
    tables = Rotary(size)(torch.randint(0, 300, shape))
    return tuple(part.to(torch.promote_types(dtype, torch.float32)) for part in tables)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts, rotated", [(3, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("layout", ["same positions", "own positions", "packed"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equals_the_formula(form, parts, rotated, layout, dtype):
    torch.manual_seed(2)
    for batch, length, heads, size in SIZES:
        shape = (batch * length,) if layout == "packed" else (batch, length)
        rotation = table((length,) if layout == "same positions" else shape, size, dtype)
        x = projection(shape, parts * heads * size, dtype)
        # The gradients of attention's inputs lie in memory head by head.
        grads = [torch.randn(heads, *shape, size, dtype=dtype).movedim(0, -2) for _ in range(parts)]
        found = {}
        for fused in (True, False):
            outputs = rotate_parts(
                x.unflatten(-1, (parts * heads, size)), rotation, parts, rotated, fused=fused
            )
            assert [output.shape for output in outputs] == [(*shape, heads, size)] * parts
            found[fused] = *outputs, *torch.autograd.grad(outputs, x, grads)
            assert {output.dtype for output in found[fused]} == {dtype}
        for ours, formula in zip(found[True], found[False], strict=True):
            torch.testing.assert_close(ours, formula, **TOLERANCES[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form):
    cos, sin = table((2,), 6, torch.float64)
    x = projection((1, 2), 3 * 6, torch.float64).unflatten(-1, (3, 6)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FusedRotation.apply(x, cos, sin, 3, 2), x)
    queries_alone = lambda x: FusedRotation.apply(x, cos, sin, 3, 2)[0]  # noqa: E731
    assert torch.autograd.gradcheck(queries_alone, x)


@pytest.mark.parametrize("form", FORMS)
def test_angles_of_late_positions_keep_their_digits(form):
    cos, sin = (part.float() for part in Rotary(8)(torch.tensor([100_000])))
    x = torch.randn(1, 2, 8)
    (half,) = FusedRotation.apply(x.bfloat16(), cos, sin, 1, 1)
    (double,) = FusedRotation.apply(x.bfloat16().double(), cos.double(), sin.double(), 1, 1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), double, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_only_the_tables_are_kept(form):
    cos, sin = table((3,), 8, torch.float32)
    x = projection((2, 3), 3 * 2 * 8, torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        rotate_parts(x.unflatten(-1, (6, 8)), (cos, sin), 3, 2)
    assert sum(one.numel() for one in kept) == cos.numel() + sin.numel()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "model, fields",
    [
        ("ln_cotformer", {"activation_checkpointing": "block"}),
        ("adm", {}),
        ("adaptive_but", {}),
        ("mla", {}),
        ("pause", {"n_pause": 2}),
    ],
    ids=str,
)
def test_a_step_of_a_model(form, model, fields):
    idx, targets = torch.randint(0, 31, (2, 2, 9))
    found = []
    for attention in ("fast", "plain"):
        network = make(model, attention=attention, **RESERVED, **fields).train()
        torch.manual_seed(5)  # capacities
        loss = network(idx, targets)["loss"]
        loss.backward()
        found.append((loss.detach(), {name: weight.grad for name, weight in network.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


def test_a_text_is_written_as_with_the_formula():
    network: LanguageModel = make("ln_cotformer")
    idx = torch.randint(0, 31, (2, 8))
    with torch.no_grad():
        whole = network(idx, get_logits=True, targets=idx)["logits"]
        cache = network.new_cache(2)
        steps = [network(part, cache=cache, get_logits=True)["logits"] for part in idx.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, [2, 5, 7]], rtol=1e-10, atol=1e-11)


def test_compiled_regions_take_the_formula(monkeypatch):
    monkeypatch.setattr(FusedRotation, "apply", None)
    rotation = table((3,), 8, torch.float32)
    compiled = torch.compile(lambda x: rotate_parts(x, rotation, 3, 2), backend="eager", fullgraph=True)
    assert len(compiled(torch.randn(2, 3, 6, 8))) == 3

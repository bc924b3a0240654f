"""Attention by patches against attention to all at once: results, gradients, and whole models."""

import pytest
import torch

from models import attend as module
from models.attend import attend
from models.rows import FAR
from models.sights import Sights
from models.variants import VARIANTS
from tests.models.reference import RESERVED, make

B, H, T = 2, 3, 7


def sights(kind):
    """(what n queries may see, sizes of the passes): the ways in which models look at passes."""
    everywhere = torch.arange(T)
    if kind == "same rows":
        return Sights(everywhere, [everywhere] * 3), [T] * 3
    if kind == "window":
        return Sights(everywhere, [everywhere] * 3, window=3), [T] * 3
    if kind == "decoding":
        return Sights(everywhere[-1:], [everywhere] * 3, everything=True), [T] * 3
    chosen = torch.tensor([[0, 2, 3, 6], [1, 2, 4, 5]])
    if kind == "fewer rows":
        return Sights(chosen, [everywhere, chosen]), [T, 4]
    if kind == "strangers":  # the first query sees none of the second pass, the others do
        return Sights(chosen, [everywhere, torch.tensor([[1, 2, 3, 4], [3, 4, 5, 6]])]), [T, 4]
    padded = torch.tensor([[2, 3, 6], [1, FAR, FAR]])
    return Sights(padded, [everywhere, chosen, padded]), [T, 4, 3]


KINDS = ("same rows", "window", "decoding", "fewer rows", "strangers", "padded")


def tensors(kind, dtype=torch.float64):
    torch.manual_seed(0)
    seen, sizes = sights(kind)
    n = {"decoding": 1}.get(kind, sizes[-1])
    sizes = [(n, 4), *((size, 4) for size in sizes for _ in "kv")]
    return seen, [torch.randn(B, H, *size, dtype=dtype, requires_grad=True) for size in sizes]


def run(seen, inputs, fast, **settings):
    queries, *rest = inputs
    passes = list(zip(rest[::2], rest[1::2], strict=True))
    y = attend(queries, passes, seen, fast=fast, **settings)
    if len(rest) == 6 and rest[-1].shape[2] == 3:  # nobody asks what padding sees
        y = y * torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=y.dtype)[:, None, :, None]
    return y


@pytest.fixture(params=[2, 3, 32], ids=lambda count: f"runs of {count}")
def step(request, monkeypatch):
    """Queries of a run: some that do not divide them, and more than there are."""
    monkeypatch.setattr(module, "FEWEST_QUERIES", request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_against_all_at_once(kind, step):
    found = {}
    for fast in (False, True):
        seen, inputs = tensors(kind)
        y = run(seen, inputs, fast, scale=0.3)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        found[fast] = y, *torch.autograd.grad((weights * y).sum(), inputs)
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_result(kind, step):
    seen, inputs = tensors(kind)
    assert torch.autograd.gradcheck(lambda *inputs: run(seen, inputs, True), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_fewer_digits(kind, dtype):
    """As near to float64 as all at once is, about."""
    seen, exact = tensors(kind)
    expected = torch.autograd.grad(run(seen, exact, False).square().sum(), exact)
    errors = {}
    for fast in (False, True):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        y = run(seen, inputs, fast)
        assert y.dtype == dtype
        gradients = torch.autograd.grad(y.float().square().sum(), inputs)
        errors[fast] = max((a - b).abs().max().item() for a, b in zip(gradients, expected, strict=True))
    assert errors[True] < 3 * errors[False] + 1e-6


def test_autocast_decides_the_format():
    seen, inputs = tensors("same rows", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ys = [run(seen, inputs, fast) for fast in (False, True)]
    assert ys[0].dtype == ys[1].dtype == torch.bfloat16
    torch.testing.assert_close(*ys, rtol=0.02, atol=0.02)


@pytest.fixture
def calls(monkeypatch):
    """The numbers of passes of each call that was by patches."""
    found = []
    original = module._by_patches

    def by_patches(queries, passes, *rest):
        found.append(len(passes))
        return original(queries, passes, *rest)

    monkeypatch.setattr(module, "_by_patches", by_patches)
    return found


def test_when_it_is_done_by_patches(calls):
    seen, inputs = tensors("same rows")
    run(seen, inputs, False)
    run(seen, inputs, True, dropout=0.1)  # the kernel has none
    assert calls == []
    run(seen, inputs, True)
    assert calls == [3]


@pytest.mark.parametrize(
    ("batch", "length", "passes", "expected"),
    [(1, 512, 2, True), (1, 256, 5, False), (8, 128, 1, True), (64, 64, 3, False), (1, 1024, 1, False),
     (1, 1024, 2, True), (1, 1, 5, False)],
)  # fmt: skip
def test_when_it_pays(patches_pay, batch, length, passes, expected):
    assert patches_pay(torch.empty(batch, 2, length, 4), [()] * passes) == expected


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_models(variant, window, calls, step):
    """Loss and all gradients, with tokens that leave early where there are such."""
    idx = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(2))
    settings = {"attention_window_length": window, "training_length_factor": [0.7, 0.4], **RESERVED}
    found = []
    for kind in ("plain", "fast"):
        calls.clear()
        network = make(variant.name, attention=kind, depth_embedding="learned", **settings).train()
        torch.manual_seed(5)
        loss = network(idx, idx.roll(-1, 1))["loss"]
        loss.backward()
        found.append((loss, {name: part.grad for name, part in network.named_parameters()}))
    across = variant.repeater in ("cross_repeat", "mixture_of_repeats")
    assert {2, 3} <= set(calls) if across else set(calls) <= {1}
    (plain, reference), (fast, gradients) = found
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("model", ["cotformer", "mla"])
def test_keys_and_values_are_not_copied_for_later_passes(model):
    """What backward needs of 5 passes is about 5 keys and values, not 1 + 2 + ... + 5."""

    def kept(kind):
        bytes_ = {}

        def pack(tensor):
            bytes_[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        network = make(model, attention=kind, n_repeat=5, n_layer=1, n_embd=16, vocab_size=8).train()
        idx = torch.randint(0, 8, (2, 64))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(idx, idx)["loss"]
        assert loss.requires_grad
        return sum(bytes_.values())

    width = 2 * 64 * 16 * 8  # bytes of keys in float64
    assert kept("plain") - kept("fast") > 0.8 * 2 * (2 + 3 + 4 + 5) * width

"""The CPU kernel of attention against PyTorch's: results, gradients, and whole models."""

import pytest
import torch

from hardware import cpu_multiplies_bfloat16
from models import attention_op as module
from models.active_tokens import PADDING
from models.attention_op import attention_op
from models.kv_cache import Visible
from models.masks import AttentionMask
from models.variants import VARIANTS
from tests.models.reference import RESERVED, make

B, H, T = 2, 3, 7


def mask_of(kind):
    """(mask, keys of each pass): the ways in which models attend to passes."""
    everywhere = torch.arange(T)
    if kind == "same tokens":
        return AttentionMask(everywhere, [everywhere] * 3), [T] * 3
    if kind == "window":
        return AttentionMask(everywhere, [everywhere] * 3, window=3), [T] * 3
    if kind == "decoding":
        return AttentionMask(everywhere[-1:], [everywhere] * 3, sees_all=True), [T] * 3
    chosen = torch.tensor([[0, 2, 3, 6], [1, 2, 4, 5]])
    if kind == "fewer tokens":
        return AttentionMask(chosen, [everywhere, chosen]), [T, 4]
    if kind == "other tokens":  # the first query sees none of the second pass, the others do
        return AttentionMask(chosen, [everywhere, torch.tensor([[1, 2, 3, 4], [3, 4, 5, 6]])]), [T, 4]
    padded = torch.tensor([[2, 3, 6], [1, PADDING, PADDING]])
    return AttentionMask(padded, [everywhere, chosen, padded]), [T, 4, 3]


KINDS = ("same tokens", "window", "decoding", "fewer tokens", "other tokens", "padded")


def tensors(kind, dtype=torch.float64):
    """The mask, and random queries, keys and values of each pass."""
    torch.manual_seed(0)
    mask, sizes = mask_of(kind)
    n = {"decoding": 1}.get(kind, sizes[-1])
    sizes = [(n, 4), *((size, 4) for size in sizes for _ in "kv")]
    return mask, [torch.randn(B, H, *size, dtype=dtype, requires_grad=True) for size in sizes]


def run(mask, inputs, fast, **settings):
    queries, *rest = inputs
    passes = list(zip(rest[::2], rest[1::2], strict=True))
    y = attention_op(queries, Visible(passes, mask), fast=fast, **settings)
    if len(rest) == 6 and rest[-1].shape[2] == 3:  # what padding sees is never used
        y = y * torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=y.dtype)[:, None, :, None]
    return y


@pytest.fixture(params=[2, 3, 32], ids=lambda size: f"blocks of {size}")
def block_size(request, monkeypatch):
    """Sizes that do not divide the queries, and one larger than their number."""
    monkeypatch.setattr(module, "SHORT_BLOCK", request.param)
    monkeypatch.setattr(module, "LONG_BLOCK", request.param)


@pytest.fixture
def calls(monkeypatch):
    """Numbers of passes of the kernel's calls."""
    found = []
    kernel = module.cpu_matmul_attention

    def noted(queries, visible, scale):
        found.append(len(visible.passes))
        return kernel(queries, visible, scale)

    monkeypatch.setattr(module, "cpu_matmul_attention", noted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_plain_operation(kind, block_size, calls):
    found = {}
    for fast in (False, True):
        mask, inputs = tensors(kind)
        y = run(mask, inputs, fast, scale=0.3)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        found[fast] = y, *torch.autograd.grad((weights * y).sum(), inputs)
    assert len(calls) == 1
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_result(kind, block_size):
    mask, inputs = tensors(kind)
    assert torch.autograd.gradcheck(lambda *inputs: run(mask, inputs, True), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_errors_are_those_of_the_plain_operation(kind, dtype, block_size):
    mask, exact = tensors(kind)
    expected = torch.autograd.grad(run(mask, exact, False).square().sum(), exact)
    errors = {}
    for fast in (False, True):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        y = run(mask, inputs, fast)
        assert y.dtype == dtype
        gradients = torch.autograd.grad(y.float().square().sum(), inputs)
        errors[fast] = max((a - b).abs().max().item() for a, b in zip(gradients, expected, strict=True))
    assert errors[True] < 3 * errors[False] + 1e-6


@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="the CPU does not multiply bfloat16")
@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (3.0, 0.0), (10.0, 0.0), (1.0, 30.0)])
def test_large_scores_and_values_keep_their_digits(spread, offset, block_size):
    """Rounded as they are, scores of 30 would be wrong by an eighth, and so would be the gradients of
    probabilities where all values have 30 in common."""
    torch.manual_seed(0)
    everywhere = torch.arange(64)
    mask = AttentionMask(everywhere, [everywhere] * 2)
    exact = [torch.randn(2, 4, 64, 16) * spread**0.5 for _ in range(3)]  # queries, and keys of two passes
    values = [torch.randn(2, 4, 64, 16) + offset for _ in range(2)]
    exact = [exact[0], exact[1], values[0], exact[2], values[1]]
    exact = [tensor.bfloat16().double().requires_grad_() for tensor in exact]
    expected = run(mask, exact, False)
    expected = expected, *torch.autograd.grad(expected.square().sum(), exact)
    errors = []
    for fast in (False, True):
        inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
        y = run(mask, inputs, fast)
        found = y, *torch.autograd.grad(y.float().square().sum(), inputs)
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)])
    for ours, plain in zip(errors[1], errors[0], strict=True):
        assert ours < 2 * plain


def test_autocast_decides_the_format():
    mask, inputs = tensors("same tokens", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ys = [run(mask, inputs, fast) for fast in (False, True)]
    assert ys[0].dtype == ys[1].dtype == torch.bfloat16
    torch.testing.assert_close(*ys, rtol=0.02, atol=0.02)


def test_the_kernel_is_taken_only_if_asked_for_and_without_dropout(calls):
    mask, inputs = tensors("same tokens")
    run(mask, inputs, False)
    run(mask, inputs, True, dropout=0.1)
    assert calls == []
    run(mask, inputs, True)
    assert calls == [3]


@pytest.mark.parametrize(
    ("batch", "length", "keys", "grad", "faster"),
    [(4, 192, 5 * 192, False, True), (16, 128, 256, False, True), (64, 64, 192, False, True),
     (1, 1, 5, False, False), (1, 256, 256, False, False), (1, 256, 256, True, True),
     (64, 1, 8192, True, False), (1, 4096, 4096, False, True)],
)  # fmt: skip
@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="the CPU does not multiply bfloat16")
def test_when_the_kernel_is_faster(really_faster, batch, length, keys, grad, faster):
    queries, keys = torch.empty(batch, 2, length, 4), torch.empty(batch, 2, keys, 4)
    with torch.set_grad_enabled(grad):
        assert really_faster(queries, [(keys, keys)], torch.bfloat16) == faster
        assert not really_faster(queries, [(keys, keys)], torch.float32)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_models(variant, window, calls, monkeypatch):
    """Loss and all gradients, with tokens that halt early in the models that have such."""
    for name in ("SHORT_BLOCK", "LONG_BLOCK"):
        monkeypatch.setattr(module, name, 3)
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
    assert {2, 3} <= set(calls) if variant.sees_all_passes else set(calls) == {1}
    (plain, reference), (fast, gradients) = found
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("model", ["cotformer", "mla"])
def test_keys_and_values_are_not_copied_for_later_passes(model):
    """What backward needs of 5 passes is about 5 keys and values, not 1 + 2 + ... + 5."""

    def saved(kind):
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
    assert saved("plain") - saved("fast") > 0.8 * 2 * (2 + 3 + 4 + 5) * width

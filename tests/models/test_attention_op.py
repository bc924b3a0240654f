"""Faster forms of attention against the plain one: results, gradients, and whole models."""

import pytest
import torch

from hardware import cpu_multiplies_bfloat16
from models import attention_op as module
from models import by_patches, by_products
from models.active_tokens import FAR
from models.attention_op import attend
from models.masks import Sights
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
    monkeypatch.setattr(by_patches, "FEWEST_QUERIES", request.param)
    monkeypatch.setattr(by_products, "SHORT_RUN", request.param)
    monkeypatch.setattr(by_products, "LONG_RUN", request.param)


@pytest.fixture(params=["patches", "products"])
def form(request, monkeypatch):
    """Taken whatever the numbers' format; its calls' numbers of passes."""
    found = []
    original = {"patches": by_patches.by_patches, "products": by_products.by_products}[request.param]

    def noted(queries, passes, *rest):
        found.append(len(passes))
        return original(queries, passes, *rest)

    monkeypatch.setattr(module, "faster", lambda queries, passes, work: noted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_against_all_at_once(kind, step, form):
    found = {}
    for fast in (False, True):
        seen, inputs = tensors(kind)
        y = run(seen, inputs, fast, scale=0.3)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        found[fast] = y, *torch.autograd.grad((weights * y).sum(), inputs)
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_result(kind, step, form):
    seen, inputs = tensors(kind)
    assert torch.autograd.gradcheck(lambda *inputs: run(seen, inputs, True), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_fewer_digits(kind, dtype, form, step):
    """As near to float64 as all at once is, about, whichever form is taken."""
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


@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="the CPU has no bfloat16")
@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (3.0, 0.0), (10.0, 0.0), (1.0, 30.0)])
def test_products_of_few_digits_keep_what_counts(spread, offset, step):
    """Rounded like other numbers in bfloat16, scores of 30 would be wrong by an eighth, and so would be the
    gradients of probabilities where all values have 30 in common."""
    torch.manual_seed(0)
    everywhere = torch.arange(64)
    seen = Sights(everywhere, [everywhere] * 2)
    exact = [torch.randn(2, 4, 64, 16) * spread**0.5 for _ in range(3)]  # queries, and keys of two passes
    values = [torch.randn(2, 4, 64, 16) + offset for _ in range(2)]
    exact = [exact[0], exact[1], values[0], exact[2], values[1]]
    exact = [tensor.bfloat16().double().requires_grad_() for tensor in exact]
    expected = run(seen, exact, False)
    expected = expected, *torch.autograd.grad(expected.square().sum(), exact)
    errors = []
    for fast in (False, True):
        inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
        y = run(seen, inputs, fast)
        found = y, *torch.autograd.grad(y.float().square().sum(), inputs)
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)])
    for ours, plain in zip(errors[1], errors[0], strict=True):
        assert ours < 2 * plain


def test_autocast_decides_the_format():
    seen, inputs = tensors("same rows", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ys = [run(seen, inputs, fast) for fast in (False, True)]
    assert ys[0].dtype == ys[1].dtype == torch.bfloat16
    torch.testing.assert_close(*ys, rtol=0.02, atol=0.02)


def test_when_another_form_is_asked_for(form):
    seen, inputs = tensors("same rows")
    run(seen, inputs, False)
    run(seen, inputs, True, dropout=0.1)  # they have none
    assert form == []
    run(seen, inputs, True)
    assert form == [3]


def test_which_form(monkeypatch):
    queries, passes = torch.empty(1, 2, 1, 4), [(torch.empty(1, 2, 1, 4),) * 2]
    assert module.faster(queries, passes, torch.float32) is by_patches.by_patches
    of_half = by_products.by_products if cpu_multiplies_bfloat16() else by_patches.by_patches
    assert module.faster(queries, passes, torch.bfloat16) is of_half
    monkeypatch.undo()  # nothing pays that is so small
    assert module.faster(queries, passes, torch.float32) is None
    assert module.faster(queries, passes, torch.bfloat16) is None


@pytest.mark.parametrize(
    ("batch", "length", "passes", "patches", "products"),
    [(1, 512, 2, True, True), (4, 192, 5, False, True), (16, 128, 2, False, True),
     (4, 256, 1, True, False), (64, 64, 3, False, True),
     (1, 1024, 1, False, True), (1, 1024, 2, True, True), (1, 1, 5, False, False),
     (1, 4096, 1, False, True), (1, 256, 1, False, False)],
)  # fmt: skip
def test_when_it_pays(all_pay, batch, length, passes, patches, products):
    queries = torch.empty(batch, 2, length, 4)
    given = queries, [(queries, queries)] * passes
    assert all_pay["patches"](*given) == patches
    with torch.no_grad():
        assert all_pay["products"](*given) == products


def test_products_do_not_pay_for_single_queries(all_pay):
    query, keys = torch.empty(64, 8, 1, 4), torch.empty(64, 8, 8192, 4)
    assert not all_pay["products"](query, [(keys, keys)])


def test_products_pay_earlier_where_there_is_a_backward_pass(all_pay):
    queries = torch.empty(1, 8, 128, 4)
    assert all_pay["products"](queries, [(queries, queries)])
    with torch.no_grad():
        assert not all_pay["products"](queries, [(queries, queries)])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_models(variant, window, form, step):
    """Loss and all gradients, with tokens that leave early where there are such."""
    idx = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(2))
    settings = {"attention_window_length": window, "training_length_factor": [0.7, 0.4], **RESERVED}
    found = []
    for kind in ("plain", "fast"):
        form.clear()
        network = make(variant.name, attention=kind, depth_embedding="learned", **settings).train()
        torch.manual_seed(5)
        loss = network(idx, idx.roll(-1, 1))["loss"]
        loss.backward()
        found.append((loss, {name: part.grad for name, part in network.named_parameters()}))
    across = variant.repeater in ("cross_repeat", "mixture_of_repeats")
    assert {2, 3} <= set(form) if across else set(form) <= {1}
    (plain, reference), (fast, gradients) = found
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("model", ["cotformer", "mla"])
def test_keys_and_values_are_not_copied_for_later_passes(model, form):
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

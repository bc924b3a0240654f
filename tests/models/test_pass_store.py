"""Attention to all passes without copies, against concatenation: results, gradients, memory, models."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask

from models import flex, pass_store, triton_kernels
from models.active_tokens import PADDING
from models.config import ModelConfig
from models.kv_cache import Visible
from models.masks import ALIGNMENT, AttentionMask
from models.pass_store import PassStore, choose_form
from models.variants import VARIANTS, find_variant
from tests.models.reference import RESERVED, make
from tests.models.test_triton_kernels import INTERPRETED

B, H, T, D, R = 2, 3, 7, 4, 3
EVERYWHERE = torch.arange(T)
FEWER = torch.tensor([[0, 2, 3, 6], [1, 2, 4, 5]])
PADDED = torch.tensor([[2, 3, 6], [1, PADDING, PADDING]])
POSITIONS = {  # of the tokens of each pass
    "same tokens": [EVERYWHERE] * R,
    "window": [EVERYWHERE] * R,
    "fewer tokens": [EVERYWHERE, FEWER, FEWER[:, 1:]],
    "padded": [EVERYWHERE, FEWER, PADDED],
}
KINDS = list(POSITIONS)


def masks(kind):
    """The mask of each pass."""
    positions, window = POSITIONS[kind], 3 if kind == "window" else None
    return [AttentionMask(positions[last], positions[: last + 1], window) for last in range(R)]


def inputs_of(kind, dtype=torch.float64):
    """Queries, keys and values of the first pass, then of the second, ..."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(B, H, where.shape[-1], D) for where in POSITIONS[kind] for _ in range(3)]
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def stored(form, kind, inputs, scale=0.3, capacity=3 * T, **settings):
    """The results of all passes. A pass is not made from the one before."""
    store, results = PassStore(form, capacity, inputs[1], **settings), []
    for mask, q, k, v in zip(masks(kind), inputs[::3], inputs[1::3], inputs[2::3], strict=True):
        results.append(store.next_pass(k).attend(q, k, v, mask, scale))
    return _used(kind, results)


def plain(kind, inputs, scale=0.3):
    results = []
    for last, mask in enumerate(masks(kind)):
        keys, values = (torch.cat(inputs[part : 3 * last + part + 1 : 3], 2) for part in (1, 2))
        form = {"attn_mask": mask.tensor, "is_causal": mask.is_causal, "scale": scale}
        results.append(F.scaled_dot_product_attention(inputs[3 * last], keys, values, **form))
    return _used(kind, results)


def _used(kind, results):
    """Results, zero for padding, which no token uses."""
    places = [POSITIONS[kind][number] == PADDING for number in range(R)]
    return [y.masked_fill(place[..., None, :, None], 0.0) for y, place in zip(results, places, strict=True)]


def weighted(results, passes=range(R)):
    """A scalar that depends on the results of these passes."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in results]
    return sum((weights[number] * results[number]).sum() for number in passes)


def applies(form, kind):
    return form != "flash" or kind == "same tokens"


# FlexAttention, not compiled, takes a quarter of a second a call: only in the tests of its results.
FORMS = ["masked", "flash"]
CASES = [(form, kind) for form in FORMS for kind in KINDS if applies(form, kind)]
WITH_FLEX = [*CASES, *(("flex", kind) for kind in KINDS)]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("form", "kind"), WITH_FLEX)
def test_results_and_gradients(form, kind):
    inputs = inputs_of(kind)
    results, expected = stored(form, kind, inputs), plain(kind, inputs)
    assert_equal(results, expected)
    assert_equal(*(torch.autograd.grad(weighted(ys), inputs) for ys in (results, expected)))


@pytest.mark.parametrize("passes", [range(R), (2,), (1,), (0,)])
@pytest.mark.parametrize(("form", "kind"), CASES)
def test_contiguous_gradients(form, kind, passes):
    """As the stages of compiled blocks want them."""
    inputs = inputs_of(kind)
    ys = stored(form, kind, inputs, contiguous_gradients=True)
    found = torch.autograd.grad(weighted(ys, passes), inputs, allow_unused=True)
    expected = torch.autograd.grad(weighted(plain(kind, inputs), passes), inputs, allow_unused=True)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one is None or other is None:
            assert one is other
            continue
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
        assert not number % 3 or one.transpose(1, 2).is_contiguous()


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_gradients_by_a_kernel(kind, dtype, monkeypatch):
    found = {}
    for by_kernel in (False, True):
        monkeypatch.setattr(triton_kernels, "has_kernel", lambda x, answer=by_kernel: answer)
        inputs = inputs_of(kind, dtype)
        found[by_kernel] = torch.autograd.grad(weighted(stored("masked", kind, inputs)), inputs)
    digits = torch.finfo(dtype).eps  # the interpreter cuts off where a GPU rounds
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=4 * digits, atol=4 * digits)
    last = inputs_of(kind)[-1].shape[2]
    assert found[True][-5].transpose(1, 2).is_contiguous() and found[True][-1].shape[2] == last


@pytest.mark.parametrize(("form", "kind"), CASES)
def test_gradients_are_those_of_the_result(form, kind):
    assert torch.autograd.gradcheck(lambda *inputs: tuple(stored(form, kind, inputs)), inputs_of(kind))


@pytest.mark.parametrize("passes", [(2,), (1,), (0,), (0, 2), (0, 1)])
@pytest.mark.parametrize(("form", "kind"), CASES)
def test_where_some_passes_have_no_gradient(form, kind, passes):
    """Their keys may have one all the same, from later passes."""
    inputs = inputs_of(kind)
    found, expected = (
        torch.autograd.grad(weighted(ys, passes), inputs, materialize_grads=True)
        for ys in (stored(form, kind, inputs), plain(kind, inputs))
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_where_few_gradients_are_wanted_and_several_times(form):
    """Each backward pass starts anew, whatever the one before left behind: here it may end at any pass."""
    kind = "same tokens"
    inputs = inputs_of(kind)
    ys, expected = stored(form, kind, inputs), plain(kind, inputs)
    for passes in (range(R), (2,), (1,), range(R)):
        for wanted in ([8], [4], [7, 1], [3], range(9), [0, 1], [5], range(9)):
            found, right = (
                torch.autograd.grad(
                    weighted(some, passes), [inputs[number] for number in wanted],
                    retain_graph=True, materialize_grads=True,
                )
                for some in (ys, expected)
            )  # fmt: skip
            assert_equal(found, right)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", [[0, 1, 2], [3, 4, 5], [6, 7, 8], [1, 4, 7], [0, 3, 6], [2]])
def test_where_some_tensors_need_no_gradient(form, frozen):
    inputs = inputs_of("same tokens")
    for number in frozen:
        inputs[number].requires_grad_(False)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found, expected = (
        torch.autograd.grad(weighted(ys), wanted)
        for ys in (stored(form, "same tokens", inputs), plain("same tokens", inputs))
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_without_gradients(form):
    with torch.no_grad():
        inputs = inputs_of("same tokens")
        results = stored(form, "same tokens", inputs)
        assert_equal(results, plain("same tokens", inputs))
    assert not any(y.requires_grad for y in results)


@pytest.mark.parametrize("form", FORMS)
def test_a_store_that_was_made_too_small_grows(form):
    inputs = inputs_of("same tokens")
    results, expected = stored(form, "same tokens", inputs, capacity=T), plain("same tokens", inputs)
    assert_equal(results, expected)
    assert_equal(*(torch.autograd.grad(weighted(ys), inputs) for ys in (results, expected)))


@pytest.mark.parametrize(("form", "kind"), [*CASES, ("flex", "fewer tokens")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_errors_are_those_of_concatenation(form, kind, dtype):
    exact = inputs_of(kind)
    expected = torch.autograd.grad(weighted(plain(kind, exact)), exact)
    errors = []
    for run in (lambda inputs: stored(form, kind, inputs), lambda inputs: plain(kind, inputs)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        ys = run(inputs)
        assert {y.dtype for y in ys} == {dtype}
        found = torch.autograd.grad(weighted([y.float() for y in ys]), inputs)
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)])
    for ours, concatenated in zip(*errors, strict=True):
        assert ours < 1.5 * concatenated + 1e-7


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_values_are_written_once_and_read_in_place(form, monkeypatch):
    """The kernel of each pass gets views of one buffer, and so does the backward pass."""
    read, saved = [], {}
    kernels = pass_store.FORMS[form]

    def attend(queries, keys, values, *rest):
        read.append((keys, values))
        return kernels.attend(queries, keys, values, *rest)

    monkeypatch.setitem(pass_store.FORMS, form, kernels._replace(attend=attend))

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = inputs_of("same tokens")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ys = stored(form, "same tokens", inputs)
    pointers = {tensor.untyped_storage().data_ptr() for pair in read for tensor in pair}
    assert len(pointers) == 1
    assert pointers <= saved.keys()
    assert {tensor.untyped_storage().data_ptr() for tensor in inputs[1::3]}.isdisjoint(saved)
    assert all(y.requires_grad for y in ys)


def test_biases_are_aligned_and_those_of_the_mask():
    for kind in KINDS:
        for mask in masks(kind):
            bias = mask.bias(torch.bfloat16)
            assert (bias is None) == (mask.tensor is None)
            if bias is not None:
                assert torch.equal(bias == 0, mask.tensor)
                assert torch.equal(bias == -torch.inf, ~mask.tensor)
                assert bias.stride(-1) == 1
                assert all(stride % ALIGNMENT == 0 for stride in bias.stride()[:-1])
                assert mask.bias(torch.bfloat16) is bias  # the layers of a pass share it


MODELS = [(variant, form, window) for variant in VARIANTS for form in FORMS for window in (None, 3)]


@pytest.mark.parametrize(
    ("variant", "form", "window"),
    [*MODELS, (find_variant("adm"), "flex", None), (find_variant("mla"), "flex", 3)],
    ids=lambda part: getattr(part, "alias", part),
)
def test_models(variant, form, window, monkeypatch):
    """Loss and all gradients, of the same number of layers and passes, where tokens halt early too."""
    passes = []
    attend = pass_store.StoredPass.attend
    monkeypatch.setattr(
        pass_store.StoredPass, "attend", lambda *args: (passes.append(args[0]), attend(*args))[1]
    )
    idx = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(2))
    settings = {"attention_window_length": window, "training_length_factor": [0.7, 0.4], **RESERVED}
    found = []
    for kind in ("plain", form):
        network = make(variant.name, attention=kind, depth_embedding="learned", **settings).train()
        torch.manual_seed(5)
        loss = network(idx, idx.roll(-1, 1))["loss"]
        loss.backward()
        found.append((loss, {name: part.grad for name, part in network.named_parameters()}))
    assert len(passes) == (2 * 3 if variant.sees_all_passes else 0)
    by_pass = form == "flash" and window is None and not variant.stops_early
    assert {one.store.form.by_pass for one in passes} <= {by_pass}
    (plain, reference), (fast, gradients) = found
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", ["cotformer", "adm", "mla"])
def test_evaluation(model, form):
    """By thresholds, with sequences of different lengths, and with a cache, which keeps keys itself."""
    idx = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(2))
    found = []
    for kind in ("plain", form):
        network = make(model, attention=kind)
        with torch.no_grad():
            some = network(idx, idx, get_logits=True, thresholds=[0.4, 0.6])["logits"]
            uneven = network(idx, get_logits=True, lengths=[9, 4, 6])["logits"]
            cached = network(idx, get_logits=True, cache=network.new_cache(3))["logits"]
        found.append((some, uneven, cached))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_less_memory_than_concatenation(form):
    """Of 5 passes 5 keys and values are kept, not 1 + 2 + ... + 5."""

    def saved(kind):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        network = make("cotformer", attention=kind, n_repeat=5, n_layer=1, n_embd=16, vocab_size=8).train()
        idx = torch.randint(0, 8, (2, 64))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(idx, idx)["loss"]
        assert loss.requires_grad
        return sum(sizes.values())

    width = 2 * 64 * 16 * 8  # bytes of keys in float64
    assert saved("plain") - saved(form) > 0.9 * 2 * (1 + 2 + 3 + 4) * width


def form_of(device="cpu", training=True, dtype=torch.bfloat16, model="cotformer", **fields):
    config = ModelConfig(model=model, **{"n_embd": 128, "n_head": 2, **fields})
    weight = SimpleNamespace(device=torch.device(device), dtype=dtype)
    return choose_form(config, weight, training)


def test_where_a_form_applies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(pass_store, "has_triton", lambda: True)
    assert form_of() == "plain"
    assert form_of("cuda") == "masked"
    for form in ("plain", *pass_store.FORMS):
        assert form_of(attention=form) == form_of("cuda", attention=form) == form
        assert form_of("cuda", attention=form, dropout=0.1) == "plain"
        assert form_of("cuda", attention=form, activation_checkpointing="block") == "plain"
        evaluation = {"training": False, "dropout": 0.1, "activation_checkpointing": "repeat"}
        assert form_of("cuda", attention=form, **evaluation) == form
        for n_embd in (120, 1024):  # heads of 60 and 512 numbers
            assert form_of("cuda", attention=form, n_embd=n_embd) == "plain"
    monkeypatch.setattr(pass_store, "has_triton", lambda: False)
    assert form_of("cuda", attention="flex") == "masked"
    for fields in ({"attention_window_length": 3}, {"model": "adm"}, {"dtype": torch.float32}):
        assert form_of("cuda", attention="flash", **fields) == "masked"
    assert form_of(attention="flash", dtype=torch.float64) == "flash"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert form_of("cuda") == "plain"


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_whose_backward_pass_is_a_graph_of_its_own(kind, monkeypatch):
    """As FlexAttention's on GPUs, here with PyTorch's operation."""

    def attend(queries, keys, values, mask, scale):
        form = {"attn_mask": mask, "is_causal": mask is None, "scale": scale}
        return flex.with_graph(F.scaled_dot_product_attention, queries, keys, values, **form)

    def backward(grad, queries, keys, values, mask, y, *saved, scale):
        return flex.gradients_of_graph(grad, *saved)

    form = pass_store.Form(attend, backward, lambda mask, dtype: mask.tensor)
    monkeypatch.setitem(pass_store.FORMS, "graph", form)
    inputs = inputs_of(kind)
    results, expected = stored("graph", kind, inputs), plain(kind, inputs)
    assert_equal(results, expected)
    assert_equal(*(torch.autograd.grad(weighted(ys), inputs) for ys in (results, expected)))


def test_block_masks_are_those_of_the_mask():
    for kind in KINDS:
        for mask in masks(kind):
            block_mask = mask.block_mask
            assert (block_mask is None) == (mask.tensor is None)
            if block_mask is not None:
                batch = mask.tensor.dim() == 4 and B
                sizes = {
                    "B": batch or 1,
                    "H": 1,
                    "Q_LEN": mask.tensor.shape[-2],
                    "KV_LEN": mask.tensor.shape[-1],
                }
                seen = create_mask(block_mask.mask_mod, **sizes, device="cpu")
                assert torch.equal(seen, mask.tensor.expand_as(seen))
                assert mask.block_mask is block_mask


def test_hidden_blocks_are_left_out():
    """Queries of the first block of 128 positions see one of two blocks of each pass."""
    positions = torch.arange(256)
    block_mask = AttentionMask(positions, [positions] * 3).block_mask
    assert block_mask.sparsity() == pytest.approx(25)


def test_by_pass_needs_the_same_tokens():
    inputs = inputs_of("fewer tokens")
    with pytest.raises(ValueError, match="same tokens"):
        stored("flash", "fewer tokens", inputs)


@pytest.mark.parametrize(("form", "kind"), CASES)
def test_what_a_store_holds_can_be_concatenated(form, kind):
    """As analyses of attention do: before the pass is written, and after."""
    inputs = inputs_of(kind)
    store = PassStore(form, 3 * T, inputs[1])
    all_masks = masks(kind)
    for last in range(R):
        q, k, v = inputs[3 * last : 3 * last + 3]
        one = store.next_pass(k)
        seen = Visible([(k, v)], all_masks[last], one)
        expected = [torch.cat(inputs[part : 3 * last + part + 1 : 3], 2) for part in (1, 2)]
        assert_equal(seen.concatenated(), expected)
        one.attend(q, k, v, all_masks[last], 0.3)
        assert_equal(seen.concatenated(), expected)

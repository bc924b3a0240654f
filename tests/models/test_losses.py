"""The loss over chunks of tokens against the plain one: values, gradients, formats, what it never makes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import losses
from models.losses import cross_entropy, linear_cross_entropy
from models.variants import VARIANTS
from tests.models.reference import RESERVED, make

N, C, V = 10, 4, 11
CHUNKS = [1, 3, 5, 10, 64]  # some divide N, some do not, some are longer


def problem(dtype=torch.float64):
    torch.manual_seed(3)
    x = torch.randn(N, C, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, C, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, V, (N,))
    targets[[0, 4, 9]] = losses.IGNORED
    token_weights = torch.rand(N, dtype=dtype, requires_grad=True)
    return x, weight, targets, token_weights


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_plain_path(chunk, weighted):
    x, weight, targets, token_weights = problem()
    inputs = (x, weight, token_weights) if weighted else (x, weight)
    each = cross_entropy(x @ weight.T, targets, "none")
    expected = (each * token_weights).sum() if weighted else each.sum()
    total, found, _ = linear_cross_entropy(x, weight, targets, token_weights if weighted else None, chunk)
    torch.testing.assert_close(total, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(found, each.detach(), rtol=1e-13, atol=1e-14)
    assert not found.requires_grad and (found[[0, 4, 9]] == 0).all()
    ours = torch.autograd.grad(3.0 * total, inputs)
    theirs = torch.autograd.grad(3.0 * expected, inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chunk", [3, 64])
def test_gradients_are_those_of_finite_differences(chunk):
    x, weight, targets, token_weights = problem()

    def total(x, weight, token_weights):
        return linear_cross_entropy(x, weight, targets, token_weights, chunk)[0]

    assert torch.autograd.gradcheck(total, (x, weight, token_weights))
    for alone in range(3):  # the others need no gradient
        inputs = [part.detach() for part in (x, weight, token_weights)]
        inputs[alone].requires_grad_()
        assert torch.autograd.gradcheck(total, inputs)


def test_no_second_derivatives():
    x, weight, targets, _ = problem()
    total, *_ = linear_cross_entropy(x, weight, targets)
    (slope,) = torch.autograd.grad(total.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    """Products in half precision, softmax and sums in float32: as near to float64 as the plain path is."""
    x, weight, targets, token_weights = problem(torch.float32)
    inputs = x, weight, token_weights
    double = [part.double() for part in inputs]
    exact = (cross_entropy(double[0] @ double[1].T, targets, "none") * double[2]).sum()
    true = torch.autograd.grad(exact, inputs)
    with torch.autocast("cpu", dtype):
        plain = (cross_entropy(torch.nn.functional.linear(x, weight), targets, "none") * token_weights).sum()
        total, each, _ = linear_cross_entropy(x, weight, targets, token_weights, 3)
        predicting = linear_cross_entropy(x, weight, targets, token_weights, 3, predict=True)
        likeliest = torch.nn.functional.linear(x, weight).argmax(-1)
    assert total.dtype == each.dtype == torch.float32
    torch.testing.assert_close(predicting[:2], (total, each), rtol=1e-6, atol=1e-6)
    assert torch.equal(predicting[2], likeliest)
    assert total.item() == pytest.approx(plain.item(), rel=1e-5)
    scale = 2.0**12  # the loss scaling of float16
    ours = torch.autograd.grad(scale * total, inputs)
    theirs = torch.autograd.grad(scale * plain, inputs)
    for mine, reference, truth in zip(ours, theirs, true, strict=True):
        assert mine.dtype == torch.float32
        error, allowed = (mine / scale - truth).norm(), (reference / scale - truth).norm()
        assert error < 2 * allowed + 1e-6 * truth.norm()
        assert allowed > 0  # it is half precision that is compared


def test_without_gradients_none_are_made(monkeypatch):
    x, weight, targets, token_weights = problem()
    expected, *_ = linear_cross_entropy(x, weight, targets, token_weights, 3)
    monkeypatch.setattr(torch.Tensor, "scatter_add_", None)  # the one-hot of the gradient
    with torch.no_grad():
        found, *_ = linear_cross_entropy(x, weight, targets, token_weights, 3)
    assert torch.equal(found, expected) and not found.requires_grad


def test_many_tokens_that_all_say_the_same_do_not_overflow_in_float16():
    """The weight's gradient is a sum over the tokens of a chunk, which no loss scale makes smaller."""
    x, weight = torch.full((20_000, 4), 6.0), torch.zeros(8, 4, requires_grad=True)
    targets = torch.zeros(len(x), dtype=torch.long)
    with torch.autocast("cpu", torch.float16):
        total, *_ = linear_cross_entropy(x, weight, targets, chunk=len(x))
    (total / len(x)).backward()
    torch.testing.assert_close(weight.grad[0], torch.full((4,), -5.25), rtol=1e-3, atol=0)


def both(model, dropout=0.0, device="cpu", **fields):
    """The same network twice, in training mode: with the chunked loss and with the plain one."""
    chosen = {"chunked": None, "plain": None}
    for loss in chosen:
        network = make(model, device, loss=loss, dropout=dropout, depth_embedding="learned", **fields)
        chosen[loss] = network.train()
    return chosen


def scored(network, idx, targets):
    torch.manual_seed(5)  # capacities
    output = network(idx, targets)
    output["loss"].backward()
    return output, {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.fixture
def chunks_of_three(monkeypatch):
    """Of tokens; without gradients of six, for these networks have more digits than half precision."""
    monkeypatch.setattr(losses, "FEWEST_TOKENS", 3)
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", {"cpu": 0, "cuda": 0})


@pytest.mark.parametrize("model", [variant.name for variant in VARIANTS])
def test_every_model_trains_as_with_the_plain_loss(model, chunks_of_three, device):
    networks = both(model, device=device, **RESERVED)
    idx, targets = torch.randint(0, 31, (2, 2, 7)).to(device)
    targets[0, 2:5] = losses.IGNORED
    (chunked, ours), (plain, theirs) = (scored(network, idx, targets) for network in networks.values())
    for name in ("loss", "cross_entropy_loss"):
        torch.testing.assert_close(chunked[name], plain[name], rtol=1e-13, atol=0)
    assert chunked["logits"] is plain["logits"] is None
    assert chunked["average_depth"] == plain["average_depth"]
    for name, reference in theirs.items():
        torch.testing.assert_close(ours[name], reference, rtol=1e-11, atol=1e-12, msg=name)
    networks["chunked"].eval(), networks["plain"].eval()
    with torch.no_grad():
        chunked, plain = (network(idx, targets, get_predictions=True) for network in networks.values())
        logits = networks["chunked"](idx, targets, get_logits=True)["logits"]
        last = networks["chunked"](idx, get_predictions=True)
    torch.testing.assert_close(chunked["loss"], plain["loss"], rtol=1e-13, atol=0)
    assert chunked["logits"] is plain["logits"] is last["logits"] is None
    assert torch.equal(chunked["predictions"], plain["predictions"])
    assert torch.equal(chunked["predictions"], logits.argmax(-1))
    assert last["predictions"].shape == (2, 1)


@pytest.mark.parametrize("model", [variant.name for variant in VARIANTS])
def test_every_model_trains_in_bfloat16(model, chunks_of_three, device):
    networks = both(model, device=device)
    idx, targets = torch.randint(0, 31, (2, 2, 9)).to(device)
    found = []
    for network in networks.values():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.3)
        with torch.autocast(device.type, torch.bfloat16):
            output, gradients = scored(network.float(), idx, targets)
        found.append((output["loss"].item(), torch.cat([part.flatten() for part in gradients.values()])))
    (ours, slope), (theirs, reference) = found
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert (slope - reference).norm() < 0.02 * reference.norm()


def test_chunks_grow_where_there_is_no_gradient_to_keep():
    device = torch.device("cpu")
    training = losses.chunk_tokens(50304, device, torch.float32)
    assert losses.chunk_tokens(1, device, torch.float32) > training
    with torch.no_grad():
        assert losses.chunk_tokens(50304, device, torch.float32) == 2 * training
        assert losses.chunk_tokens(50304, device, torch.bfloat16) == training


@pytest.mark.parametrize("model", ["base", "pondernet"])
def test_targets_that_are_all_ignored_have_no_mean(model):
    idx = torch.randint(0, 31, (1, 9))
    for network in both(model).values():
        output = network(idx, torch.full_like(idx, losses.IGNORED))
        assert math.isnan(output["cross_entropy_loss"].item())


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [part.numel() for part in tree_leaves(made) if isinstance(part, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


@pytest.mark.parametrize("model", ["base", "ln_cotformer", "adm", "pondernet", "pause"])
def test_no_tensor_has_the_size_of_the_logits(model, chunks_of_three):
    """Forward and backward. What is largest instead: in training the head's gradient, in evaluation six
    tokens' logits, and for many tokens attention's scores, which are not at issue here."""
    largest, evaluated = {}, {}
    for loss, network in both(model, vocab_size=1009, n_repeat=2, n_embd=4, n_pause=1, dropout=0.1).items():
        for length in (8, 32):
            idx = torch.randint(0, 1009, (1, length))
            with Largest() as seen:
                scored(network, idx, idx)
            largest[loss, length] = seen.elements
            with Largest() as seen, torch.no_grad():
                network.eval()(idx, idx, get_predictions=True)
            evaluated[loss, length] = seen.elements
            network.train()
    for length in (8, 32):
        assert min(largest["plain", length], evaluated["plain", length]) >= length * 1009
    assert largest["chunked", 8] == 1009 * 4 and evaluated["chunked", 8] == 6 * 1009
    assert evaluated["chunked", 32] <= 2 * 64 * 64
    assert largest["chunked", 32] <= 2 * 64 * 64 < 0.3 * 32 * 1009

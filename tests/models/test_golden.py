"""Number for number against outputs of the released code: tests/golden, and ../shared/golden where it is."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import models
from config.training import TrainConfig
from models.active_tokens import ActiveTokens
from models.block import Block
from models.generation import generate
from optim.optimizers import make_optimizer, make_schedule, parameter_groups
from tests.conftest import DEVICE

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden" / "public")
ON_GPU = DEVICE.type == "cuda"
ATOL = 2e-4 if ON_GPU else 2e-5
RTOL_GRADIENT = 1e-3 if ON_GPU else 1e-4

pytestmark = pytest.mark.usefixtures("device")


def cases():
    """Every case of a model that is registered; the copies in tests/golden stand for those in shared/."""
    found = {}
    for path in (path for folder in FOLDERS for path in sorted(folder.glob("*/case.json"))):
        model = json.loads(path.read_text())["config"]["model"]
        if model in models.registered_models():
            found.setdefault(path.parent.name, path.parent)
    return found


CASES = cases()


class Case:
    def __init__(self, folder: Path, **fields) -> None:
        self.expected = json.loads((folder / "case.json").read_text())
        # As the released code has it; ours differs on purpose.
        released = {"act_loss_reduction": "sum", "ponder_eval": "sample"}
        self.args = types.SimpleNamespace(**{**self.expected["config"], **released, **fields})
        arrays = np.load(folder / "io.npz")
        self.io = {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}
        self.idx, self.targets = self.io["idx"].long(), self.io["targets"].long()
        weights = models.import_original_state_dict(load_file(folder / "weights.safetensors"), self.args)
        self.model = models.make_model_from_args(self.args)
        self.model.load_state_dict(weights, strict=True)
        self.model.to(DEVICE).eval()

    @property
    def is_ponder(self) -> bool:
        return self.args.model == "pondernet"


def skip_if_drawn_on_a_gpu(case):
    if case.is_ponder and ON_GPU:
        pytest.skip("the released PonderNet's exits were drawn by the CPU's generator")


@pytest.fixture(params=sorted(CASES))
def case(request):
    return Case(CASES[request.param])


def each(part):
    """(case, tag) for every tag under `part` of every case."""
    return [
        pytest.param(name, tag, id=f"{name}-{tag}")
        for name, folder in sorted(CASES.items())
        for tag, expected in json.loads((folder / "case.json").read_text())[part].items()
        if "error" not in expected
    ]


def test_every_copied_case_is_used():
    assert len(list(FOLDERS[0].glob("*/case.json"))) >= 18
    assert {path.parent.name for path in FOLDERS[0].glob("*/case.json")} <= set(CASES)


@pytest.mark.parametrize(("name", "tag"), each("eval"))
def test_evaluation(name, tag):
    """Losses, logits and depths; for routers also every score and every choice."""
    case = Case(CASES[name])
    skip_if_drawn_on_a_gpu(case)
    expected = case.expected["eval"][tag]
    length = expected["T"]
    targets = {"last_only": None, "ignore": case.io["targets_with_ignore"].long()}.get(tag, case.targets)
    targets = targets if targets is None else targets[:, :length]
    torch.manual_seed(expected.get("seed", 0))  # PonderNet draws its exits
    factors = expected.get("eval_length_factor")
    output = case.model(
        case.idx[:, :length], targets, get_logits=True, length_factors=factors, get_routing=True
    )
    if tag == "last_only":
        assert output["loss"] is None
    else:
        assert output["loss"].item() == pytest.approx(expected["loss"], abs=ATOL)
    logits = case.io.get(f"eval.{tag}.logits")
    if logits is not None:
        assert output["logits"].shape == logits.shape
        if case.is_ponder:  # ours are normalised, as a mixture over exits has to be
            logits = logits.log_softmax(-1)
        torch.testing.assert_close(output["logits"], logits, atol=ATOL, rtol=0)
    assert float(output["average_depth"]) == pytest.approx(
        expected["average_depth"] or case.args.n_layer, abs=1e-6
    )
    if expected.get("topk_counts"):
        assert output["tokens_per_pass"] == [length, *expected["topk_counts"]]
    for router in range(len(expected.get("topk_counts", []))):
        if f"eval.{tag}.router{router}.logits_by_position" in case.io:
            compare_router(case, f"eval.{tag}.router{router}", output, router)


def compare_router(case, prefix, output, router):
    """Scores of the tokens that our router saw, and which of them went on."""
    scores = output["router_scores"][:, router]
    seen = ~scores.isnan()
    theirs = case.io[f"{prefix}.logits_by_position"].sigmoid()
    torch.testing.assert_close(scores[seen], theirs[seen], atol=ATOL, rtol=0)
    for row, positions in zip(output["passes"], case.io[f"{prefix}.selected_positions"], strict=True):
        assert (row > router + 1).nonzero().flatten().tolist() == positions.tolist()


@pytest.mark.parametrize("tag", ["none", "f0.6_0.3"])
def test_activations_of_every_block(case, tag):
    """Each module's output at each call, in the released code's order of calls, of the tokens we compute."""
    prefix = f"eval.{tag}.act."
    keys = [key for key in case.io if key.startswith(prefix)]
    if not keys:
        pytest.skip("no activations in this case")
    skip_if_drawn_on_a_gpu(case)
    found, tokens_now = {}, []

    def record(name):
        def hook(module, inputs, output):
            if isinstance(module, Block):
                tokens_now[:] = inputs[1:2]
            (tokens,) = tokens_now
            if output.numel() != tokens.count * output.shape[-1]:
                tokens = ActiveTokens(tokens.grid)
            scattered = output.new_full((tokens.grid.batch * tokens.grid.length, output.shape[-1]), torch.nan)
            scattered[tokens.flat_index] = output.flatten(0, -2)
            found.setdefault(name, []).append(scattered.view(tokens.grid.batch, tokens.grid.length, -1))

        return hook

    modules = dict(case.model.named_modules())
    names = {key.removeprefix(prefix).rsplit(".call", 1)[0] for key in keys} & modules.keys()
    for name in names:
        modules[name].register_forward_hook(record(name))
    torch.manual_seed(case.expected["eval"][tag].get("seed", 0))
    case.model(case.idx, case.targets, length_factors=case.expected["eval"][tag].get("eval_length_factor"))
    compared = 0
    for key in keys:
        name, call = key.removeprefix(prefix).rsplit(".call", 1)
        if int(call) < len(found.get(name, [])):
            ours = found[name][int(call)]
            seen = ~ours.isnan()
            assert seen.any()
            torch.testing.assert_close(ours[seen], case.io[key][seen], atol=ATOL, rtol=1e-5)
            compared += 1
    assert compared >= case.args.n_layer


def joined(expected, name, square):
    """Ours joins what some released models split: q_attn and c_attn."""
    split = name.replace(".c_attn.", ".q_attn.")
    if split == name or split not in expected:
        return expected[name]
    both = expected[name], expected[split]
    return (both[0] ** 2 + both[1] ** 2) ** 0.5 if square else sum(both)


@pytest.mark.parametrize("capacities", ["given", "drawn"])
@pytest.mark.parametrize(("name", "tag"), each("train"))
def test_gradients(name, tag, capacities):
    """With the capacities of the released run given, and drawn again from its seed."""
    expected = json.loads((CASES[name] / "case.json").read_text())["train"][tag]
    factors = expected.get("length_factors")
    if capacities == "drawn" and factors is None:
        pytest.skip("this model draws no capacities")
    case = Case(CASES[name], training_length_factor=factors if capacities == "given" else None)
    if case.is_ponder:
        pytest.skip("the released loss is not PonderNet's; see test_ponder_loss")
    torch.manual_seed(expected["seed"])
    case.model.train()
    output = case.model(case.idx, case.targets, get_logits=True, get_routing=True)
    assert output["loss"].item() == pytest.approx(expected["loss"], abs=ATOL)
    assert float(output["average_depth"]) == pytest.approx(
        expected["average_depth"] or case.args.n_layer, abs=1e-6
    )
    if f"train.{tag}.logits" in case.io:
        torch.testing.assert_close(output["logits"], case.io[f"train.{tag}.logits"], atol=ATOL, rtol=0)
    for router in range(len(factors or [])):
        compare_router(case, f"train.{tag}.router{router}", output, router)
    output["loss"].backward()
    for name, parameter in case.model.named_parameters():
        norm = 0.0 if parameter.grad is None else parameter.grad.norm().item()
        assert norm == pytest.approx(
            joined(expected["grad_l2"], name, True) or 0.0, rel=RTOL_GRADIENT, abs=1e-7
        ), name
        along = 0.0 if parameter.grad is None else (parameter.grad * parameter).sum().item()
        assert along == pytest.approx(
            joined(expected["grad_dot_param"], name, False) or 0.0, rel=RTOL_GRADIENT, abs=ATOL
        ), name


@pytest.mark.parametrize("name", [name for name in sorted(CASES) if name.startswith("pondernet")])
def test_ponder_loss(name):
    """The published formula, from the released code's tensors (NOTES.md, section 5)."""
    case = Case(CASES[name], ponder_eval="expectation")
    expected = case.expected["train"]["seed1234"]["derived_not_upstream"]
    case.model.train()
    output = case.model(case.idx, case.targets)
    assert output["cross_entropy_loss"].item() == pytest.approx(expected["expected_ce_aligned"], abs=ATOL)
    assert output["loss"].item() == pytest.approx(expected["loss_ponder_paper"], abs=ATOL)
    weight = case.args.ponder_kl_div_loss_weight
    divergence = (output["loss"] - output["cross_entropy_loss"]).item() / weight
    assert divergence == pytest.approx(expected["kl_posterior_to_prior_as_in_the_ponder_paper"], abs=1e-3)
    # In evaluation the same expectation, without the divergence, and nothing is drawn.
    case.model.eval()
    scored = case.model(case.idx, case.targets)
    assert scored["loss"].item() == pytest.approx(expected["expected_ce_aligned"], abs=ATOL)
    posterior = case.io["train.seed1234.halting_posterior_bt_n"]
    begin, middle, end = case.model.config.layers
    depth = (posterior * torch.arange(1, 4, device=DEVICE)).sum(-1).mean().item() * middle + begin + end
    assert float(scored["average_depth"]) == pytest.approx(depth, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in sorted(CASES) if name.startswith("sb_")])
def test_stick_breaking_halts_where_the_released_code_does(name):
    case = Case(CASES[name])
    passes = case.model(case.idx, case.targets, get_routing=True)["passes"]
    for repeat in range(case.args.n_repeat):
        final = case.io[f"eval.none.halt{repeat}.is_final"].bool()
        assert torch.equal(passes <= repeat + 1, final)


def renamed(case, names):
    """The released code's parameters as ours: joined, renamed, and without those that are never used."""
    last = case.args.n_repeat - 1
    unused = (f"transformer.mod.{last}.", f"to_halt_logits.{last}.")
    if case.is_ponder:
        unused += ("depth_predictor.",)
    changes = {".q_attn.": ".c_attn.", "to_logits.0.": "transformer.ln_f."}
    ours = {name for name in names if not name.startswith(unused)}
    for old, new in changes.items():
        ours = {name.replace(old, new) for name in ours}
    return ours


def test_weight_decay_groups(case):
    names = {parameter: name for name, parameter in case.model.named_parameters()}
    decaying, others = ({names[p] for p in group["params"]} for group in parameter_groups(case.model, 0.1))
    assert decaying == renamed(case, case.expected["weight_decay_groups"]["decay"])
    assert others == renamed(case, case.expected["weight_decay_groups"]["no_decay"])


def test_six_optimizer_steps(case):
    """Six steps of AdamW under the cosine schedule on one batch: losses, rates, norms, final weights."""
    if case.is_ponder:
        pytest.skip("the released loss is not PonderNet's")
    args = types.SimpleNamespace(
        **{**vars(case.args), "iterations": 20, "warmup_percent": 0.2, "log_freq": None, "lr": 1e-3}
    )
    config = TrainConfig.from_args(args)
    optimizer = make_optimizer(case.model, config)
    schedule = make_schedule(optimizer, config)
    case.model.train()
    for expected in case.expected["optimizer_walk"]["steps"]:
        torch.manual_seed(expected["seed"])
        loss = case.model(case.idx, case.targets)["loss"]
        assert loss.item() == pytest.approx(expected["loss"], abs=ATOL)
        if "grad_norm" not in expected:
            break
        assert schedule.get_last_lr()[0] == pytest.approx(expected["lr"], rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in case.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        assert norm == pytest.approx(expected["grad_norm"], rel=RTOL_GRADIENT)
        optimizer.step()
        schedule.step()
    for name, parameter in case.model.named_parameters():
        expected = joined(case.expected["optimizer_walk"]["param_l2_after"], name, True)
        assert parameter.norm().item() == pytest.approx(expected, rel=RTOL_GRADIENT), name


@pytest.mark.parametrize(("name", "tag"), each("generate"))
def test_greedy_generation(name, tag):
    """As the released code does it: the whole window again for each token, routed by top-k."""
    factors = None if tag == "none" else [float(part) for part in tag.removeprefix("f").split("_")]
    case = Case(CASES[name], eval_length_factor=factors)
    expected = case.expected["generate"][tag]
    drawn = generate(
        case.model,
        [expected["prompt"]],
        expected["max_new_tokens"],
        top_k=1,
        cached=False,
        keep=case.args.sequence_length,
    )
    assert expected["prompt"] + [int(step.tokens) for step in drawn] == expected["output"]


def test_parameter_count(case):
    unused = 0
    if case.model.config.variant.routed:
        unused = case.args.n_embd
    if case.is_ponder:
        width = case.args.n_embd
        unused = width + 1 + width * width + width + 2 * width
    assert case.model.parameter_count() == case.expected["n_params"] - unused

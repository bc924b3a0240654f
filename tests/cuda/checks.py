"""What the tests of this folder ask of the process in which CUDA is imitated. Results are plain data."""

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from analysis.statistics import effective_ranks, energies_of_weight, energy_kept_of_parts
from config.training import TrainConfig
from data.batches import MicroBatch
from distributed import Precision, choose_device
from distributed.parallel import RankSlice, SingleProcess
from models.config import ModelConfig
from models.generation import generate
from models.graphed_decoding import CapturedStep, GraphedDecoder
from models.language_model import LanguageModel
from optim.state import TrainState
from optim.train import training_step
from optim.validation import evaluate
from tests.cuda import imitation

imitation.install()
SIZE = {
    "vocab_size": 67, "sequence_length": 24, "n_layer": 3, "n_layer_begin": 1, "n_layer_end": 1,
    "n_repeat": 3, "n_embd": 32, "n_head": 2, "depth_embedding": "linear_learned", "kv_lora_rank": 8,
    "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
CONFIG = TrainConfig(
    iterations=3, batch_size=4, acc_steps=2, sequence_length=24, seed=0, data_seed=0, opt="adamw", lr=1e-3,
    beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=1.0, scheduler="cos", warmup_percent=0.2,
    final_div_factor=1.0, eval_freq=3, log_freq=1, save_checkpoint_freq=None,
)  # fmt: skip
PROMPTS = {"even": [[*range(18)], [*range(20, 38)]], "uneven": [[1, 2, 3], [*range(20)], [9]]}
SETTINGS = {"greedy": {"temperature": 0}, "drawn": {"temperature": 0.8, "top_k": 5, "top_p": 0.9}}


def build(model: str, device: torch.device, **flags: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(model=model, **{**SIZE, **flags})).to(device)


def batches() -> Iterator[MicroBatch]:
    """Six micro-batches of four sequences."""
    ids = torch.randint(0, SIZE["vocab_size"], (6, 4, 25), generator=torch.Generator().manual_seed(1))
    for one in ids:
        inputs, targets = one[:, :-1].contiguous(), one[:, 1:].contiguous()
        yield MicroBatch(inputs, targets, targets.numel())


def train(model: str, device: str, dtype: str = "float32", flags: dict[str, Any] | None = None) -> dict:
    """Three optimiser steps of two micro-batches.

    Returns losses, gradient norms, and the waits of the last step: in all, and in its micro-batches alone.
    """
    where = choose_device(device)
    network = build(model, where, **(flags or {})).train()
    precision = Precision(where, getattr(torch, dtype), "asked for")
    state = TrainState.fresh(network, CONFIG, precision.gradient_scaler())
    micro_batches, losses, norms = batches(), [], []
    rank_slice = RankSlice.of(CONFIG.batch_size, CONFIG.acc_steps, 0, 1)
    forward = _Forward(network)
    for _ in range(CONFIG.iterations):
        forward.waits = Counter()
        with imitation.counted_waits() as waits:
            loss, norm = training_step(
                state, forward, micro_batches, rank_slice, CONFIG, precision.autocast(), SingleProcess(),
                lambda step: False,
            )  # fmt: skip
        losses.append(loss)
        norms.append(norm)
    return {
        "losses": losses, "norms": norms, "weights_on": {p.device.type for p in network.parameters()}.pop(),
        "waits": _lines(waits), "waits_in_forward": _lines(forward.waits),
    }  # fmt: skip


class _Forward(nn.Module):
    """A model's forward pass, with its waits counted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.waits: Counter = Counter()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with imitation.counted_waits() as waits:
            output = self.model(*args, **kwargs)
        self.waits += waits
        return output


def _lines(waits: Counter) -> dict[str, int]:
    return {f"{operation} at {place}": count for (operation, place), count in waits.items()}


def evaluation(model: str, device: str, dtype: str = "float32") -> dict[str, list[float]]:
    """Loss, correct tokens and average depth: at full depth, by capacities, by thresholds."""
    where = choose_device(device)
    network = build(model, where)
    one = next(batches())
    results = {}
    ways = {
        "full": {},
        "capacities": {"length_factors": [0.7, 0.3]},
        "thresholds": {"thresholds": [0.5, 0.5]},
    }
    for name, routing in ways.items():
        precision = Precision(where, getattr(torch, dtype), "asked for")
        found = evaluate(network, [(one.inputs, one.targets)], precision, **routing)
        results[name] = [found.loss, found.correct_tokens, found.average_depth]
    return results


def generation(
    model: str, device: str, prompts: str, settings: str, cached: bool, tokens: int = 9
) -> dict[str, Any]:
    """Texts that outgrow the sequence length, passes of each token, and waits per token after the prompt."""
    network = build(model, choose_device(device))
    texts, passes, waits = [], [], Counter()
    drawn = generate(
        network, PROMPTS[prompts], tokens, cached=cached, generator=torch.Generator().manual_seed(3),
        thresholds=[0.5, 0.5], **SETTINGS[settings],
    )  # fmt: skip
    for number in range(tokens):
        with imitation.counted_waits() as these:
            one = next(drawn)
        if number:
            waits += these
        texts.append(one.tokens.tolist())
        passes.append(one.passes.tolist())
    per_token = {line: count / (tokens - 1) for line, count in _lines(waits).items()}
    return {"texts": texts, "passes": passes, "waits_per_token": per_token}


def energies(device: str) -> list[Any]:
    """Statistics of `analysis` that add up eigenvalues in order."""
    torch.manual_seed(3)
    z = torch.randn(40, 6, dtype=torch.float64).to(choose_device(device))
    parts = [slice(0, 2), slice(2, 6)]
    return [effective_ranks(energies_of_weight(z)), energy_kept_of_parts(z.T @ z, [1, 3], parts)]


def graphed_step(model: str) -> dict[str, Any]:
    """A decoding step as it is captured: its waits, and the difference of its logits from the plain ones."""
    network = build(model, choose_device("cuda")).eval()
    prompts, newest = torch.tensor(PROMPTS["even"]), torch.tensor([[3], [4]])
    decoder, cache = GraphedDecoder(network, 2, None), network.new_cache(2)
    decoder._capture = lambda: CapturedStep(SimpleNamespace(replay=lambda: None), decoder.run())
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for one in (decoder.cache, cache):
            network(prompts.to("cuda"), cache=one)
        with imitation.counted_waits() as waits:
            logits = decoder(newest)["logits"]
        plain = network(newest.to("cuda"), get_logits=True, cache=cache)["logits"]
    return {"waits": _lines(waits), "error": (logits - plain).abs().max().item()}


def refused(what: str) -> str | None:
    """The error of an operation, None where it has none."""
    x, on_cpu = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    index = torch.zeros(3, 3, dtype=torch.long)
    operations = {
        "add_cpu_tensor": lambda: x + on_cpu,
        "cpu_indices_of_a_gather": lambda: x.gather(0, index),
        "cpu_generator": lambda: torch.bernoulli(x, generator=torch.Generator()),
        "linear_with_cpu_weight": lambda: nn.functional.linear(x, on_cpu),
        "numpy": lambda: x.numpy(),
        "add_number_on_the_cpu": lambda: x + torch.tensor(1.0),
        "copy_to_the_cpu": lambda: on_cpu.copy_(x),
        "cpu_indices": lambda: x[index],
        "cumsum": lambda: x.cumsum(0),
        "cumsum_of_counts": lambda: index.cuda().cumsum(0),
    }
    choose_device("cuda")
    try:
        operations[what]()
    except (RuntimeError, TypeError) as error:
        return str(error)
    return None


def waits(what: str) -> dict[str, int]:
    x, count = torch.ones(3, device="cuda"), torch.arange(3, device="cuda")
    operations = {
        "item": lambda: x.sum().item(),
        "tolist": lambda: x.tolist(),
        "by_mask": lambda: x[x > 0],
        "nonzero": lambda: x.nonzero(),
        "to_cpu": lambda: x.cpu(),
        "from_list": lambda: torch.tensor([1, 2], device="cuda"),
        "repeat_interleave": lambda: x.repeat_interleave(count),
        "sized_repeat_interleave": lambda: x.repeat_interleave(count, output_size=3),
        "non_blocking": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
        "add": lambda: x + 1,
    }
    with imitation.counted_waits() as found:
        operations[what]()
    return _lines(found)


def attention_errors(kernel: str) -> dict[str, float]:
    """Largest differences of a fused kernel's results and gradients from attention written out."""
    torch.manual_seed(2)
    tensors = [torch.randn(2, 3, 5, 8, device="cuda").requires_grad_() for _ in range(3)]
    copies = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    bias = torch.randn(2, 3, 5, 5, device="cuda") if kernel.endswith("bias") else None
    if kernel.startswith("flash"):
        causal = kernel.endswith("causal")
        output, log_sum, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*tensors, 0.0, causal)
    else:
        causal = False
        output, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(*tensors, bias, True)
    scores = copies[0] @ copies[1].mT / 8**0.5
    if bias is not None:
        scores = scores + bias
    if causal:
        hidden = torch.ones(5, 5, dtype=torch.bool, device="cuda").triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    expected = scores.softmax(-1) @ copies[2]
    grad = torch.randn(2, 3, 5, 8, device="cuda")
    output.backward(grad)
    expected.backward(grad)
    pairs = {"output": (output, expected), "log_sum": (log_sum[..., :5], scores.logsumexp(-1))}
    pairs |= {f"gradient {i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(tensors, copies, strict=True))}
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def formats(model: str, flags: dict[str, Any] | None = None) -> dict[str, list[str]]:
    """Number formats of the first tensor that each operation of a training step in bfloat16 takes."""
    found: dict[str, set[str]] = {}

    def note(operation: imitation.Operation) -> None:
        first = operation.args[0] if operation.args else None
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            name = "attention" if "attention" in operation.name else operation.name
            found.setdefault(name, set()).add(str(first.dtype).removeprefix("torch."))

    network = build(model, torch.device("cuda"), **(flags or {})).train()
    one = next(batches())
    with imitation.observed(note):
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(one.inputs.to("cuda"), one.targets.to("cuda"))["loss"]
        loss.backward()
    return {name: sorted(dtypes) for name, dtypes in found.items()}


def gate_item(name: str) -> list[dict[str, Any]]:
    """The rows of an item of the GPU gate, at tiny sizes; those until then where it is skipped."""
    from bench.gpu_gate import texts
    from bench.gpu_gate.items import ITEMS
    from bench.gpu_gate.rows import Skipped
    from bench.plan import Plan

    plan = Plan(("ln_cotformer", "adm"), None, (), "cuda", None, 1, "tiny", "bfloat16")
    (item,) = (one for one in ITEMS if one.name == name)
    module, _, function = item.function.partition(":")
    rows = []
    # The clock waits for the GPU by a call that the hooks do not have, and there are no graphs.
    without = patch.object(torch.accelerator, "synchronize"), patch.object(texts, "GRAPHED", False)
    with contextlib.suppress(Skipped), without[0], without[1]:
        for one in getattr(importlib.import_module(f"bench.gpu_gate.{module}"), function)(plan):
            rows.append(one)
    return rows

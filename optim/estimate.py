"""What a training will take: parameters, compute and memory, known before the first step.

Activations are counted in closed form, from the tensors that autograd keeps for the backward pass, at full
depth: a routed step that draws smaller capacities takes less.

Shapes: C = n_embd, H = n_head, R = n_repeat, V = vocab_size, N positions of a micro-batch (pause tokens
included), S visible keys.
"""

import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from config import notes
from config.training import TrainConfig
from distributed import Precision, Processes, choose_compile
from distributed.parallel import RankSlice
from distributed.processes import environment_number
from errors import UsageError
from hardware import cpu_multiplies_bfloat16, free_memory
from models.attention_op import LONG_BLOCK
from models.config import ModelConfig
from models.losses import chunk_tokens
from models.macs import count_macs, parameter_count
from optim.resume import exactness

logger = logging.getLogger(__name__)

WIDE = 4  # bytes of a number of the residual stream, of a weight and its gradient
SLOTS = {"adamw": 2, "sgd": 1, "adafactor": 0}  # optimiser states as large as the weights; of others: 2
# The interpreter with torch and its libraries; a CUDA context with its kernels.
PROCESS = {"cpu": 400_000_000, "cuda": 600_000_000}
# `distributed.device.keep_heap` keeps freed memory, in pieces: measured, 1.1 to 1.6 times what is in use.
HEAP = {"none": 1.35, "repeat": 1.6, "block": 1.6}


def estimate_memory(
    args: Namespace, precision: Precision, processes: Processes | None = None
) -> dict[str, int]:
    """Bytes at the peak of a rank's training, part by part: on the GPU, or in main memory on a CPU.

    Raises UsageError where the batch cannot be split across the processes.
    """
    config, on_cpu = ModelConfig.from_args(args), precision.device.type == "cpu"
    rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
    rank_slice = RankSlice.of(args.batch_size, args.acc_steps, rank, size)
    batch = rank_slice.rows.stop - rank_slice.rows.start
    weights = WIDE * parameter_count(config)
    sharded = size > 1 and args.distributed_backend == "fsdp"
    shard = weights // size if sharded else weights
    gathered = weights if sharded else 0  # the blocks that run in turn, and gradients between reductions
    activations = _activations(config, batch, precision, args.compile == "step")
    if precision.dtype.itemsize < WIDE:
        activations += weights * precision.dtype.itemsize / WIDE  # autocast's copies of weights
    heap = HEAP[config.activation_checkpointing] if on_cpu else 1.0
    step = {
        "gradients": shard + gathered,
        "activations": round(heap * activations),
        "logits": round(heap * _logits(config, batch, precision)),
    }
    slots = shard * SLOTS.get(args.opt, 2)
    copied = shard + slots if on_cpu else 0
    if args.save_checkpoint_freq is None:  # only after the last step, whose memory is free then
        copied = max(0, copied - sum(step.values()))
    return {
        "weights": shard + gathered,
        "optimiser state": slots,
        **step,
        "checkpoint copy": copied,
        "process": PROCESS["cpu" if on_cpu else "cuda"],
    }


def _activations(config: ModelConfig, batch: int, precision: Precision, compiled: bool) -> float:
    """Bytes that are kept for the backward pass, and those that it computes at its largest."""
    size = precision.dtype.itemsize
    length = config.sequence_length * config.positions_per_token
    positions = batch * length
    variant, passes = config.variant, config.repeats
    seen = passes if variant.sees_all_passes else 1
    width = config.n_embd
    blockwise = (
        precision.device.type == "cpu" and precision.dtype == torch.bfloat16 and cpu_multiplies_bfloat16()
        and config.attention == "fast" and not config.dropout and not compiled
    )  # fmt: skip
    in_place = (  # `models.pass_store`
        precision.device.type == "cuda" and config.attention != "plain" and not config.dropout
        and config.activation_checkpointing == "none" and not compiled
    )  # fmt: skip
    attention, keys = _ATTENTION[variant.attention](config, size)
    # The residual stream twice, the LayerNorm before the MLP, and the MLP before and after its GELU.
    block = 2 * WIDE * width + attention + 9 * size * width
    if config.dropout:
        block += 2 * width  # masks
    source = (WIDE + size) * width if variant.halted_tokens_offer_keys else 0

    def middle(repeat: int) -> float:
        """A middle block in that pass, per position."""
        total = block
        if repeat > 1 or variant.has_halting_gate:
            total += source
        if variant.sees_all_passes and repeat > 1 and not (blockwise or in_place):
            total += repeat * size * keys  # concatenated
        masked = repeat > 1 and (variant.sees_all_passes or variant.stops_early)
        if (masked or config.attention_window_length) and not blockwise:
            sequences = batch if variant.stops_early and repeat > 1 else 1  # with a mask of their own
            total += (repeat if variant.sees_all_passes else 1) * length * size * sequences / batch
        if config.dropout and precision.device.type == "cpu":  # probabilities, and what dropout left of them
            visible = (repeat if variant.sees_all_passes else 1) * length
            total += config.n_head * visible * (2 * size + 1)
        return total

    around = WIDE * width * (variant.depth_parts + 3 * variant.routed + 6 * variant.has_halting_gate)
    begin, layers, end = config.layers
    once = begin + end * config.exits
    held = size * keys if variant.sees_all_passes else 0  # keys and values for later passes
    match config.activation_checkpointing:
        case "none":
            kept = once * block + sum(layers * middle(repeat) + around for repeat in range(1, passes + 1))
        case "repeat":
            kept = once * block + passes * (WIDE * width + around + layers * held)
            # The pass before the last is recomputed next to the gradients of its keys and values.
            kept += layers * max(middle(passes), middle(max(passes - 1, 1)) + (passes - 2) * held)
        case _:
            entering = WIDE * width
            kept = (once + layers * passes) * entering + passes * (around + layers * held) + middle(passes)
            if source:  # all tokens enter next to the active ones
                kept += layers * (passes if variant.has_halting_gate else passes - 1) * entering
            kept += max(0, layers * ((passes - 2) * held - entering))
    backward = (4 * size + 16) * width + seen * keys * (2 * size + WIDE if blockwise else size)
    if blockwise:  # scores of a block, their probabilities and gradients
        backward += 3 * config.n_head * min(LONG_BLOCK, length) * seen * size
    return positions * (kept + backward)


def _multi_head(config: ModelConfig, size: int) -> tuple[float, int]:
    """Bytes kept of a position, and numbers of its key and value.

    LayerNorm, the projection (values are views of it), rotated queries and keys, and the output.
    """
    return size * 7 * config.n_embd + WIDE * config.n_head, 2 * config.n_embd


def _latent(config: ModelConfig, size: int) -> tuple[float, int]:
    """The same: also latents, their norms, and queries, keys, values and outputs padded to equal widths."""
    key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    padded = config.n_head * max(key, value)
    numbers = (2 if size < WIDE else 1) * config.n_embd  # each projection casts its input
    numbers += config.q_lora_rank + config.kv_lora_rank + config.qk_rope_head_dim + 4 * padded
    numbers += config.n_head * value if value < key else 0
    norms = 2 * (config.q_lora_rank + config.kv_lora_rank)
    return size * numbers + WIDE * (norms + config.n_head), 2 * padded


_ATTENTION = {"mha": _multi_head, "mla": _latent}


def _logits(config: ModelConfig, batch: int, precision: Precision) -> float:
    """Bytes of the head and the loss: logits (of a chunk), and gradients of the head and of its input."""
    size, tokens = precision.dtype.itemsize, batch * config.sequence_length * config.exits
    head = config.vocab_size * config.n_embd
    if config.loss == "plain":
        return tokens * (config.vocab_size * 3 * WIDE + WIDE * config.n_embd)
    chunk = chunk_tokens(config.vocab_size, precision.device, precision.dtype)
    logits = min(chunk, tokens) * config.vocab_size * size
    return logits + head * (WIDE + size) + tokens * config.n_embd * 2 * WIDE


def describe(args: Namespace, folder: Path, precision: Precision, processes: Processes) -> None:
    """Log what the training is and takes.

    Raises UsageError, with flags that fit, where a rank needs more memory than is free, unless --yes or
    --dry_run is given.
    """
    config, training = ModelConfig.from_args(args), TrainConfig.from_args(args)
    for note in notes(args):
        logger.info(note)
    device = precision.device
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads"
    macs = count_macs(config, config.sequence_length, convention="true") / config.sequence_length
    logger.info(f"{args.model}: {parameter_count(config):,} parameters, on {device} ({name})")
    logger.info(
        f"{_short(macs)} multiply-accumulates per token in a forward pass"
        f"{' at full depth' if config.variant.stops_early else ''}, computed in {precision.reason}"
    )
    tokens = training.tokens_per_step
    total = 3 * macs * tokens * args.iterations  # the backward pass takes twice the forward's
    logger.info(
        f"{tokens:,} tokens per step; {_short(tokens * args.iterations)} tokens in {args.iterations:,} "
        f"steps, {_short(total)} multiply-accumulates ({_short(2 * total)} FLOPs) forward and backward"
    )
    _, compiled = choose_compile(args.compile, device, training.micro_batches)
    if compiled:
        logger.info(compiled)
    parts = estimate_memory(args, precision, processes)
    needed, free = sum(parts.values()), _free(precision)
    of = "" if free is None else f" of {_gb(free)} free"
    shown = ", ".join(f"{name} {_gb(part)}" for name, part in parts.items() if part >= 5e7)
    each = " for each process" if processes.size > 1 else ""
    logger.info(f"estimated memory{each}: {_gb(needed)}{of} ({shown})")
    logger.info(exactness(args, on_gpu))
    logger.info(f"run folder: {folder}")
    _, needed, free = max(processes.gather((needed - (free or needed), needed, free or needed)))
    if needed > free:
        where = str(device) if on_gpu else "this machine"
        sentence = (
            f"training takes an estimated {_gb(needed)} of memory{each}, and {where} has {_gb(free)} free"
            f"{each}; {_advice(args, precision, processes, free)}"
        )
        if not (args.yes or args.dry_run):
            raise UsageError(f"{sentence}, or --yes to train nevertheless")
        logger.warning(sentence)


def _free(precision: Precision) -> int | None:
    """Bytes for this rank, where they are known: the ranks of a machine share its main memory."""
    free = free_memory(precision.device)
    if free is None or precision.device.type == "cuda":
        return free
    return free // environment_number("LOCAL_WORLD_SIZE", 1)


def _advice(args: Namespace, precision: Precision, processes: Processes, free: int) -> str:
    """Flags with which the training fits into `free` bytes: such that compute the same, if there are any."""
    for alternatives in _CHANGES:
        fitting = []
        for changes in alternatives:
            for change in changes(args):
                changed = Namespace(**vars(args) | change)
                needed = _needed(changed, precision, processes)
                if needed is not None and needed <= free:
                    flags = " ".join(f"--{name} {value}" for name, value in change.items())
                    fitting.append(f"{flags} ({_gb(needed)})")
                    break
        if fitting:
            return f"give {' or '.join(fitting)}"
    return "choose a smaller --n_layer, --n_embd or --vocab_size"


def _needed(args: Namespace, precision: Precision, processes: Processes) -> int | None:
    """Bytes of a rank's training; None for impossible flags."""
    try:
        return sum(estimate_memory(args, precision, processes).values())
    except UsageError:
        return None


def _smaller_batches(args: Namespace) -> Iterator[dict[str, Any]]:
    """The same step in more micro-batches."""
    for batch in range(args.batch_size - 1, 0, -1):
        if args.batch_size % batch == 0:
            yield {"batch_size": batch, "acc_steps": args.acc_steps * args.batch_size // batch}


def _recomputation(args: Namespace) -> Iterator[dict[str, Any]]:
    for kind in ("repeat", "block"):
        yield {"activation_checkpointing": kind}


def _both(args: Namespace) -> Iterator[dict[str, Any]]:
    for batch in _smaller_batches(args):
        yield batch | {"activation_checkpointing": "block"}


def _smaller_models(args: Namespace) -> Iterator[dict[str, Any]]:
    *_, smallest = [{"activation_checkpointing": "block"}, *_both(args)]
    for head_size in range(args.n_embd // args.n_head // 2 * 2 - 2, 0, -2):
        yield {"n_embd": args.n_head * head_size, **smallest}


# Where the first ones do not fit, the next ones are tried.
_CHANGES = ((_smaller_batches, _recomputation), (_both,), (_smaller_models,))


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _short(number: float) -> str:
    """Like 352 million, or 1.7e+18."""
    for least, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if least <= number < 1000 * least:
            return f"{number / least:.3g} {word}"
    return f"{number:,.0f}" if number < 1e6 else f"{number:.2g}"

"""Halting by a learned distribution over passes: stick breaking and PonderNet (paper, Appendix D).

Shapes: *rows.shape as in `models.active_tokens`, B batch, T tokens, C = n_embd, R = n_repeat.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import Rows
from models.attention import Context
from models.config import ModelConfig
from models.key_values import Memory, Store
from models.mixture_of_repeats import put
from models.repeaters import Middle, Repeated


class HaltingGate(nn.Module):
    """C -> C, GELU, -> 2: the log-probabilities of going on and of halting after a pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._gate = nn.Sequential(  # the name is that of published checkpoints
            nn.Linear(config.n_embd, config.n_embd), nn.GELU(), nn.Linear(config.n_embd, 2, bias=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., C) -> log P(go on), log P(halt), each (...), in float32 at least."""
        logits = self._gate(x)
        work = torch.promote_types(logits.dtype, torch.float32)
        return F.log_softmax(logits, -1, dtype=work).unbind(-1)


class StickBreaking:
    """Stick breaking halting (Tan et al. 2023), frozen on stop, as the released code has it.

    After pass r a token halts with p_r = halt_r * prod_{j<r} go_on_j. It stops when the probability of never
    having halted falls under 1 - halt_threshold: its representation is frozen and it leaves the rows. Keys
    and values are those of the running mixture sum_j p_j x_j + P(still going) * x, not of x. The penalty is
    the expected number of passes, R + 1 for never halting, a mean over tokens.

    A compiled step, whose shapes must not depend on the text, computes frozen tokens too, to no effect.
    """

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        everyone = rows
        flat = x.flatten(0, -2)
        never = flat.new_ones(len(flat), dtype=torch.promote_types(x.dtype, torch.float32))
        log_go = torch.zeros_like(never)
        going, fixed = torch.ones_like(never), torch.zeros_like(flat)
        penalty = torch.zeros_like(never[0])
        passes, counts = [], []
        # Which tokens are frozen; None where those leave the rows.
        frozen = never.new_zeros(len(never), dtype=torch.bool) if torch.compiler.is_compiling() else None
        for repeat in range(1, middle.n_repeat + 1):
            place = rows.within(everyone)
            active = flat.index_select(0, place)
            own_fixed, own_going = fixed[place], going[place, None]
            mixture = fixed + going[:, None] * flat
            run = partial(_among_mixtures, middle, rows, everyone, place)
            stores = middle.own_pass(memory, repeat)
            active = middle.run_pass(run, stores, everyone, rows, active, mixture, own_fixed, own_going)
            go, halt = middle.halting_gate(active)
            halting = never[place] * halt.exp()
            if frozen is not None:
                active, go = torch.where(frozen[:, None], flat, active), torch.where(frozen, log_go, go)
                halting = halting.masked_fill(frozen, 0.0)
                counts.append((~frozen).sum())
            flat = put(flat, place, active)
            if rows.total:
                passes.append(rows)
            penalty = penalty + repeat * halting.sum()
            # A frozen token's gate stays what it was, and its chance of never halting goes on falling.
            log_go = log_go.index_copy(0, place, go)
            never = never * log_go.exp()
            if repeat == middle.n_repeat:
                break
            still = never[place] >= 1.0 - middle.halt_threshold
            going_now = torch.zeros_like(going).index_copy(0, place, torch.where(still, never[place], 0.0))
            fixed = fixed + (going - going_now)[:, None] * flat
            going = going_now
            if frozen is not None:
                frozen = ~still
                continue
            rows = rows.keep(still.view(rows.shape))
            if not rows.total and not memory.lasting:
                never = never * (log_go * (middle.n_repeat - repeat)).exp()
                break
        penalty = penalty + (middle.n_repeat + 1) * never.sum()
        return Repeated([flat.unflatten(0, everyone.shape)], passes, [], penalty / len(never), counts)


def _among_mixtures(
    middle: Middle,
    rows: Rows,
    everyone: Rows,
    place: Tensor,
    stores: Sequence[Store],
    active: Tensor,
    mixture: Tensor,
    own_fixed: Tensor,
    own_going: Tensor,
) -> Tensor:
    """A pass of the rows at `place`, active (n, C), among everyone's mixtures (N, C)."""
    for block, store in zip(middle.blocks, stores, strict=True):
        context = Context(mixture.unflatten(0, everyone.shape), everyone)
        active = block(active.unflatten(0, rows.shape), rows, store, context).flatten(0, -2)
        mixture = put(mixture, place, own_fixed + own_going * active)
    return active


def halting_distribution(lambdas: Tensor) -> Tensor:
    """Halting probabilities after each pass but the last, (R - 1, ...) -> p (R, ...), which sums to 1.

    p_r = lambda_r * prod_{j<r} (1 - lambda_j); the last pass takes what is left (Banino et al. 2021).
    """
    going = torch.cat((torch.ones_like(lambdas[:1]), (1.0 - lambdas).cumprod(0)))
    return torch.cat((lambdas * going[:-1], going[-1:]))


def geometric(lambda_p: float, n_repeat: int) -> Tensor:
    """PonderNet's prior, (R,): the same construction with a constant."""
    return halting_distribution(torch.full((n_repeat - 1,), lambda_p, dtype=torch.float64))


def ponder_divergence(p: Tensor, lambda_p: float) -> Tensor:
    """KL(p || geometric prior) of p (R, ...) -> (...), in nats."""
    prior = geometric(lambda_p, len(p)).to(p).view(-1, *[1] * (p.dim() - 1))
    return (p * (p.clamp_min(1e-8) / prior.clamp_min(1e-8)).log()).sum(0)


def sampled_exits(lambdas: Tensor) -> Tensor:
    """Halting probabilities (R - 1, *shape) -> a drawn exit for each token, one-hot (R, *shape).

    Pass by pass, a uniform number of at most lambda halts the token; the last pass takes the rest. The
    numbers come from torch's generator in the order of the released code.
    """
    first, *rest = lambdas.shape[1:]
    numbers = torch.rand(first, len(lambdas) + 1, *rest, device=lambdas.device, dtype=lambdas.dtype)
    return halting_distribution((numbers.transpose(0, 1)[:-1] <= lambdas).to(lambdas.dtype))

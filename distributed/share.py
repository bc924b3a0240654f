"""Which part of each step's sequences a process computes."""

import math
from dataclasses import dataclass

from errors import UsageError


@dataclass(frozen=True)
class Share:
    """Of a step's acc_steps micro-batches of batch_size sequences, what falls to one process.

    It computes micro-batches first .. first + acc_steps - 1 of the step; of each, where several processes
    part one among them, the sequences rows.start .. rows.stop - 1.
    """

    first: int
    acc_steps: int
    rows: slice

    @classmethod
    def of(cls, batch_size: int, acc_steps: int, rank: int, size: int) -> "Share":
        """The micro-batches are dealt out first: acc_steps / gcd(acc_steps, size) to a process. What is left
        of the size parts the sequences of a micro-batch. Raises UsageError where they cannot be parted.

        So a step is the same sum over the same batch_size * acc_steps sequences for any size.
        """
        groups = math.gcd(acc_steps, size)
        together = size // groups  # processes that part a micro-batch
        if batch_size % together:
            raise UsageError(
                f"--batch_size {batch_size} x --acc_steps {acc_steps} cannot be parted among {size} "
                f"processes: make acc_steps a multiple of {size}, or batch_size one of {together}"
            )
        group, place = divmod(rank, together)
        rows = batch_size // together
        share = acc_steps // groups
        return cls(group * share, share, slice(place * rows, (place + 1) * rows))

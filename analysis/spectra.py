"""Spectra and what they say of ranks.

The energy of a spectrum is the sum of the squares of its singular values. The effective rank at a level p is
the smallest r of which the r largest have a fraction of at least p of all energy. Of data z (W,) the spectrum
is that of the second moment E[z z^T] (or of the covariance): its eigenvalues are the energies, their roots
the singular values of the N x W matrix of data over sqrt(N). By Eckart and Young (1936) a linear latent of r
numbers keeps at most the r largest energies in the mean square; with a constant added when it is read, those
of the covariance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = (0.9, 0.95, 0.99)
_ROUNDING = 1e-12  # by which a sum of fractions may miss 1


def energies_of_weight(weight: Tensor) -> Tensor:
    """Squares of the singular values of a matrix, descending, float64."""
    return torch.linalg.svdvals(weight.detach().double()).square()


def energies_of_moment(moment: Tensor) -> Tensor:
    """Eigenvalues of a second moment or covariance (W, W), descending (W,); rounding makes none negative."""
    return torch.linalg.eigvalsh(moment).flip(0).clamp_min(0.0)


def effective_rank(energies: Tensor, level: float) -> int:
    """The smallest r whose r largest energies are a fraction of at least `level`; 0 where all is zero."""
    fractions = energies.cumsum(0) / energies.sum()
    return 0 if energies.sum() == 0 else int((fractions < level - _ROUNDING).sum()) + 1


def effective_ranks(energies: Tensor) -> dict[str, int]:
    """At all LEVELS, by percent."""
    return {f"{100 * level:g}": effective_rank(energies, level) for level in LEVELS}


def kept(energies: Tensor, rank: int) -> float:
    """The fraction of energy that the best latent of `rank` numbers keeps."""
    return float(energies[:rank].sum() / energies.sum())


def kept_of_parts(moment: Tensor, ranks: Sequence[int], parts: Sequence[slice]) -> list[list[float]]:
    """What the best latent of the whole keeps of each part of z: by rank, by part.

    With eigenvectors u_i and eigenvalues l_i of the moment, reading the parts P z from a latent of r numbers
    leaves E|P z - P U U^T z|^2 = tr(P M P^T) - sum_{i <= r} l_i |P u_i|^2.
    """
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    found = []
    for part in parts:
        energy = (values * vectors[part].square().sum(0)).cumsum(0)
        found.append([float(energy[min(rank, len(energy)) - 1] / energy[-1]) for rank in ranks])
    return [list(of_rank) for of_rank in zip(*found, strict=True)]

"""Streaming statistics (moments, means by group), and spectra with their effective ranks.

All are float64, and their memory does not grow with the number of tokens.

The energy of a spectrum is the sum of its squared singular values. Its effective rank at level p is the
smallest r for which the r largest singular values hold at least a fraction p of the energy. The spectrum of
data z (W,) is that of the second moment E[z z^T], or of the covariance: its eigenvalues are the energies, and
their square roots are the singular values of the N x W data matrix divided by sqrt(N). By Eckart and Young
(1936), a linear latent of r numbers keeps at most the r largest energies in the mean square; if a constant is
added when the latent is read, the same holds with the covariance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = (0.9, 0.95, 0.99)
_ROUNDING = 1e-12  # how far a sum of fractions may fall short of 1


class Moments:
    """Count, sum and sum of outer products of vectors z (W,): enough for their mean and covariance."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, z: Tensor) -> None:
        """Add N vectors, z (N, W)."""
        z = z.double()
        self.count += len(z)
        self.sum += z.sum(0)
        self.products.addmm_(z.T, z)

    @property
    def second_moment(self) -> Tensor:
        """E[z z^T], (W, W)."""
        return self.products / self.count

    @property
    def covariance(self) -> Tensor:
        """E[z z^T] - E[z] E[z]^T, (W, W): divided by N, not by N - 1."""
        mean = self.sum / self.count
        return self.second_moment - torch.outer(mean, mean)

    def part(self, components: slice) -> "Moments":
        """The moments of some components of z."""
        return self._of(self.count, self.sum[components], self.products[components, components])

    @classmethod
    def pooled(cls, parts: Sequence["Moments"]) -> "Moments":
        """The moments of several streams taken together."""
        return cls._of(
            sum(part.count for part in parts),
            sum(part.sum for part in parts),
            sum(part.products for part in parts),
        )

    @classmethod
    def _of(cls, count: int, total: Tensor, products: Tensor) -> "Moments":
        moments = cls(0, products.device)
        moments.count, moments.sum, moments.products = count, total, products
        return moments


class GroupedMeans:
    """Means of K numbers over the members of each of G groups; NaNs are left out."""

    def __init__(self, groups: int, columns: int) -> None:
        self.sums = torch.zeros(groups, columns, dtype=torch.float64)
        self.counts = torch.zeros(groups, columns, dtype=torch.float64)

    def add(self, group: Tensor, values: Tensor) -> None:
        """Add N members: the group of each, (N,), and their values (N, K)."""
        values = values.detach().double()
        known = ~values.isnan()
        group = group.to(values.device)
        for total, part in ((self.sums, values.nan_to_num(0.0)), (self.counts, known.double())):
            added = torch.zeros(total.shape, dtype=torch.float64, device=values.device)
            total += added.index_add_(0, group, part).cpu()

    @property
    def means(self) -> Tensor:
        """(G, K); NaN for a group without values."""
        return self.sums / self.counts

    def merged(self, group: Tensor, groups: int) -> "GroupedMeans":
        """Merge the groups into fewer. group (G,): the new group of each; -1 leaves it out."""
        merged, used = GroupedMeans(groups, self.sums.shape[1]), group >= 0
        merged.sums.index_add_(0, group[used], self.sums[used])
        merged.counts.index_add_(0, group[used], self.counts[used])
        return merged


def energies_of_weight(weight: Tensor) -> Tensor:
    """Squared singular values of a matrix, in descending order, float64."""
    return torch.linalg.svdvals(weight.detach().double()).square()


def energies_of_moment(moment: Tensor) -> Tensor:
    """Eigenvalues (W,) of a second moment or covariance (W, W), in descending order, none negative."""
    return torch.linalg.eigvalsh(moment).flip(0).clamp_min(0.0)


def effective_rank(energies: Tensor, level: float) -> int:
    """The smallest r whose r largest energies are a fraction of at least `level`; 0 if all are zero."""
    energies = energies.cpu()  # on CUDA, deterministic mode refuses sums of this kind
    fractions = energies.cumsum(0) / energies.sum()
    return 0 if energies.sum() == 0 else int((fractions < level - _ROUNDING).sum()) + 1


def effective_ranks(energies: Tensor) -> dict[str, int]:
    """The effective rank at each of LEVELS, by percent: {"90": ...}."""
    return {f"{100 * level:g}": effective_rank(energies, level) for level in LEVELS}


def energy_kept(energies: Tensor, rank: int) -> float:
    """The fraction of energy that the best latent of `rank` numbers keeps."""
    return float(energies[:rank].sum() / energies.sum())


def energy_kept_of_parts(moment: Tensor, ranks: Sequence[int], parts: Sequence[slice]) -> list[list[float]]:
    """The fraction of energy of each part of z that the best latent of all of z keeps: by rank, then by part.

    With eigenvectors u_i and eigenvalues l_i of the moment M, a latent of r numbers reconstructs the part P z
    with the error E|P z - P U U^T z|^2 = tr(P M P^T) - sum_{i <= r} l_i |P u_i|^2.
    """
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    by_part = []
    for part in parts:
        energy = (values * vectors[part].square().sum(0)).cpu().cumsum(0)
        by_part.append([float(energy[min(rank, len(energy)) - 1] / energy[-1]) for rank in ranks])
    return [list(of_rank) for of_rank in zip(*by_part, strict=True)]

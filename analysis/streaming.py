"""Statistics of a stream, in float64 and in memory that does not grow with it."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Moments:
    """Count, sum and sum of products of vectors z (W,): what their mean and covariance are made of."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, z: Tensor) -> None:
        """z (N, W)."""
        z = z.double()
        self.count += len(z)
        self.total += z.sum(0)
        self.products.addmm_(z.T, z)

    @property
    def second_moment(self) -> Tensor:
        """E[z z^T], (W, W)."""
        return self.products / self.count

    @property
    def covariance(self) -> Tensor:
        """E[z z^T] - E[z] E[z]^T, (W, W): with 1 / N, not 1 / (N - 1)."""
        mean = self.total / self.count
        return self.second_moment - torch.outer(mean, mean)

    def part(self, where: slice) -> "Moments":
        """Those of some of the components."""
        return self._of(self.count, self.total[where], self.products[where, where])

    @classmethod
    def pooled(cls, parts: Sequence["Moments"]) -> "Moments":
        """Those of all the vectors of several streams."""
        return cls._of(
            sum(part.count for part in parts),
            sum(part.total for part in parts),
            sum(part.products for part in parts),
        )

    @classmethod
    def _of(cls, count: int, total: Tensor, products: Tensor) -> "Moments":
        made = cls(0, products.device)
        made.count, made.total, made.products = count, total, products
        return made


class GroupedMeans:
    """Means of K numbers over the members of each of G groups; a NaN is not counted."""

    def __init__(self, groups: int, columns: int) -> None:
        self.sums = torch.zeros(groups, columns, dtype=torch.float64)
        self.counts = torch.zeros(groups, columns, dtype=torch.float64)

    def add(self, group: Tensor, values: Tensor) -> None:
        """group (N,): to which each belongs. values (N, K)."""
        values = values.detach().double()
        known = ~values.isnan()
        group = group.to(values.device)
        for whole, part in ((self.sums, values.nan_to_num(0.0)), (self.counts, known.double())):
            found = torch.zeros(whole.shape, dtype=torch.float64, device=values.device)
            whole += found.index_add_(0, group, part).cpu()

    @property
    def means(self) -> Tensor:
        """(G, K); NaN where there was nothing."""
        return self.sums / self.counts

    def merged(self, group: Tensor, groups: int) -> "GroupedMeans":
        """The groups put together into fewer ones. group (G,): to which each of them goes; -1: to none."""
        made, used = GroupedMeans(groups, self.sums.shape[1]), group >= 0
        made.sums.index_add_(0, group[used], self.sums[used])
        made.counts.index_add_(0, group[used], self.counts[used])
        return made

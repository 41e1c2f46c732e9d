"""Whether fakes lie where reals are, and reals where fakes are: precision, recall, density, coverage.

Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, equation 1. Density and coverage:
Naeem et al. 2020, arXiv:2002.09797. All see a set as balls around its features that reach to the
k-th neighbour. The first two count the surface of a ball in, as their equation says; the other two
do not, as the authors compute them: equal sets then have density 1.
"""

import torch
from torch import Tensor

from genray.evaluation.distances import distance_blocks, nearest

PRECISION_K = 3
"""Neighbours for precision and recall, as in the paper."""
DENSITY_K = 5
"""Neighbours for density and coverage, as in the paper."""


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of every feature (N, D) to its `k`-th neighbour in the same set: (N,), float32.

    Raises:
        ProtocolError: fewer than k + 1 features.
    """
    return nearest(features, features, k, same=True)[0][:, -1]


def share_inside(points: Tensor, centres: Tensor, reach: Tensor, block_size: int | None = None) -> float:
    """Share of `points` (N, D) that lie in some ball around `centres` (M, D) of radius `reach` (M,).

    Precision when the points are fakes and the centres reals, recall the other way round.
    """
    inside = [(block <= reach).any(1) for _, block in distance_blocks(points, centres, block_size)]
    return float(torch.cat(inside).double().mean())


def density_coverage(
    reals: Tensor, fakes: Tensor, reach: Tensor, k: int = DENSITY_K, block_size: int | None = None
) -> tuple[float, float]:
    """Density, not negative and 1 for good fakes, and coverage in [0, 1].

    Density is how many balls of reals a fake lies in, in the mean, over `k`; coverage the share of
    reals whose ball has a fake in it.

    Args:
        reals: (N, D).
        fakes: (M, D).
        reach: `radii(reals, k)`.
        k: neighbours.
        block_size: reals at once. None: as many as memory should hold.
    """
    hits, covered = 0, 0
    for start, block in distance_blocks(reals, fakes, block_size):
        inside = block < reach[start : start + len(block), None]
        hits += int(inside.sum())
        covered += int(inside.any(1).sum())
    return hits / (k * len(fakes)), covered / len(reals)

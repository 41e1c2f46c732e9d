"""The kernel distance (KID) between two sets of features.

Bińkowski et al. 2018, arXiv:1801.01401. Unlike the Fréchet distance its estimate is unbiased, so
few images blur it without shifting it.
"""

import torch
from torch import Tensor

from genray.errors import ProtocolError
from genray.streams import generator

NUM_SUBSETS = 50
SUBSET_SIZE = 1000


def polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(a . b / D + 1)^3 for every pair of rows of `a` (N, D) and `b` (M, D): (N, M)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under the cubic kernel; may be slightly negative.

    Args:
        a: (N, D), N at least 2; computed in float64.
        b: (M, D), M at least 2.

    Raises:
        ProtocolError: a set has fewer than two features.
    """
    if min(len(a), len(b)) < 2:
        raise ProtocolError(f"a kernel distance needs at least 2 images a set, got {len(a)} and {len(b)}; take more")
    a, b = a.double(), b.double()
    within = _off_diagonal_mean(polynomial_kernel(a, a)) + _off_diagonal_mean(polynomial_kernel(b, b))
    return float(within - 2 * polynomial_kernel(a, b).mean())


def kernel_distances(
    reals: Tensor, fakes: Tensor, seed: int, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE
) -> list[float]:
    """Squared MMD of `num_subsets` random subsets; their mean is the KID, their deviation its spread.

    Args:
        reals: (N, D).
        fakes: (M, D).
        seed: of the choice of subsets, each without repetition.
        num_subsets: at least 1.
        subset_size: of both sets alike, at most N and M.

    Raises:
        ProtocolError: a subset is larger than a set, or smaller than 2.
    """
    if not 2 <= subset_size <= min(len(reals), len(fakes)):
        raise ProtocolError(
            f"kid subsets of {subset_size} images cannot be taken of {len(reals)} reals and {len(fakes)} fakes; "
            f"take subsets of 2 to {min(len(reals), len(fakes))}"
        )
    distances = []
    for number in range(num_subsets):
        source = generator(seed, "kid", number)
        a, b = (x[torch.randperm(len(x), generator=source)[:subset_size]] for x in (reals, fakes))
        distances.append(squared_mmd(a, b))
    return distances


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    num = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (num * (num - 1))

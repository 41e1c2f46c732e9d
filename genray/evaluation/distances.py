"""Distances between features, a block of rows at a time, so that memory stays bounded."""

from collections.abc import Iterator

import torch
from torch import Tensor

from genray.errors import ProtocolError

BLOCK_NUMBERS = 1 << 20
"""Distances that are held at once, 8 MB in float64: larger blocks are slower, as caches end."""
_SAME = 1e-12
"""Squared distances below this share of the squared norms are rounding: the features are the same."""


def distance_blocks(a: Tensor, b: Tensor, block_size: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """First row and Euclidean distances (rows, M) of one block of `a` to all of `b` after the other.

    Worked out in float64 and then rounded to float32: so what ties in truth ties here, whatever the
    size of the blocks, and a copy has distance 0.

    Args:
        a: (N, D), any floating type, finite.
        b: (M, D).
        block_size: rows of `a` at once. None: as many as `BLOCK_NUMBERS` allows.

    Raises:
        ProtocolError: a feature is not finite, or the widths differ.
    """
    check_features(a, b)
    centre = b.double().mean(0)
    right = b.double() - centre
    norms = right.square().sum(1)
    size = block_size or max(1, BLOCK_NUMBERS // max(1, len(b)))
    for start in range(0, len(a), size):
        rows = a[start : start + size].double() - centre
        scale = rows.square().sum(1, keepdim=True) + norms
        squared = torch.addmm(scale, rows, right.T, alpha=-2)
        squared.masked_fill_(squared < scale.mul_(_SAME), 0)
        yield start, squared.sqrt_().float()


def nearest(a: Tensor, b: Tensor, k: int = 1, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """Distances (N, k), ascending, and places (N, k), int64, of the `k` rows of `b` nearest to each row of `a`.

    Args:
        a: (N, D).
        b: (M, D), M at least `k`.
        k: at least 1.
        same: whether `a` is `b`, and a row is no neighbour of its own; M is then at least k + 1.

    Raises:
        ProtocolError: too few features, as the widths differ, or one is not finite.
    """
    if len(b) < k + same:
        raise ProtocolError(
            f"the {k} nearest of {len(b)} images are not defined, expected at least {k + same} images; "
            "raise eval.num_samples, or take a larger split"
        )
    distances, places = [], []
    for start, block in distance_blocks(a, b):
        if same:
            block[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found = block.topk(k, dim=1, largest=False)
        distances.append(found.values)
        places.append(found.indices)
    if not distances:
        return a.new_empty(0, k, dtype=torch.float32), torch.empty(0, k, dtype=torch.int64)
    return torch.cat(distances), torch.cat(places)


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance of two different rows of `features` (N, D): 0 exactly when all are the same.

    The spirit of LPIPS diversity (Zhang et al. 2018, arXiv:1801.03924), with the extractor's features.

    Raises:
        ProtocolError: fewer than two features.
    """
    if len(features) < 2:
        raise ProtocolError(f"diversity needs at least 2 images, got {len(features)}; raise eval.num_samples")
    total = sum(float(block.double().sum()) for _, block in distance_blocks(features, features))
    return total / (len(features) * (len(features) - 1))


def check_features(*sets: Tensor) -> None:
    """Raises ProtocolError unless all are (N, D) of one width D, and finite."""
    widths = [int(features.shape[1]) for features in sets]
    if len(set(widths)) > 1:
        raise ProtocolError(
            f"features are {' and '.join(map(str, widths))} wide, expected one width; take one extractor for both"
        )
    for features in sets:
        bad = int((~features.isfinite()).any(1).sum())
        if bad:
            raise ProtocolError(
                f"{bad} of {len(features)} features are not finite, expected finite numbers; take another extractor"
            )

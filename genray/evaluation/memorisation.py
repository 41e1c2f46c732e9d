"""Whether a generator repeats its training images.

AuthPct: Alaa et al. 2022, arXiv:2102.08921, section 4.1. C_T: Meehan, Chaudhuri and Dasgupta 2020,
arXiv:2004.05675, section 3.
"""

import math

import torch
from torch import Tensor

from genray.errors import ProtocolError

NUM_CELLS = 10
MIN_FAKES = 20
"""Fakes that a cell must hold to be counted for C_T, as in the paper."""


def auth_pct(to_train: Tensor, nearest_place: Tensor, train_to_train: Tensor) -> float:
    """Percentage of fakes that are no copies: farther from their nearest training image than that is from the next.

    Near 0: the training set is copied. Reals that were not trained on give about 50 or more.

    Args:
        to_train: (M,), distance of each fake to the nearest training image.
        nearest_place: (M,), int64, which one that is.
        train_to_train: (N,), distance of each training image to the nearest other one.

    Raises:
        ProtocolError: no fakes.
    """
    if len(to_train) == 0:
        raise ProtocolError("auth_pct of 0 images is not defined; raise eval.num_samples")
    return 100 * float((to_train > train_to_train[nearest_place]).double().mean())


def mann_whitney_z(a: Tensor, b: Tensor) -> float:
    """How far the numbers `a` (N,) lie above `b` (M,), in standard deviations of chance (Mann and Whitney 1947).

    Without the correction for ties or continuity. Negative: `a` is the smaller.
    """
    ordered = b.sort().values
    below = torch.searchsorted(ordered, a.contiguous()).double()
    upto = torch.searchsorted(ordered, a.contiguous(), right=True).double()
    u = float((below + upto).sum() / 2)
    n, m = len(a), len(b)
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def c_t(
    fakes_to_train: Tensor, fake_cells: Tensor, held_out_to_train: Tensor, held_out_cells: Tensor, num_cells: int
) -> float:
    """C_T: clearly negative where fakes lie nearer to the training set than unseen reals do, 0 for honest fakes.

    The Mann-Whitney z of distances to the training set, fakes to held-out reals, within each cell,
    averaged by the cells' share of the held-out reals. Cells with fewer than `MIN_FAKES` fakes, or
    no held-out reals, are left out.

    Args:
        fakes_to_train: (M,), distance of each fake to the nearest training image.
        fake_cells: (M,), int64, the cell of each fake, below `num_cells`.
        held_out_to_train: (N,), the same of reals that were not trained on.
        held_out_cells: (N,), int64.
        num_cells: cells that feature space is divided into.

    Raises:
        ProtocolError: no cell has enough fakes.
    """
    values, weights = [], []
    for cell in range(num_cells):
        fakes, reals = fakes_to_train[fake_cells == cell], held_out_to_train[held_out_cells == cell]
        if len(fakes) >= MIN_FAKES and len(reals):
            values.append(mann_whitney_z(fakes, reals))
            weights.append(len(reals))
    if not values:
        raise ProtocolError(
            f"c_t of {len(fakes_to_train)} images is not defined: no cell has {MIN_FAKES} of them and a held-out "
            "image; raise eval.num_samples"
        )
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def cell_centres(train: Tensor, num_cells: int = NUM_CELLS) -> Tensor:
    """Centres (num_cells, D) of a k-means division of training features (N, D), always the same.

    Raises:
        ProtocolError: fewer features than cells.
    """
    if len(train) < num_cells:
        raise ProtocolError(f"{num_cells} cells cannot be made of {len(train)} training images; take a larger set")
    from sklearn.cluster import KMeans  # takes seconds to import

    found = KMeans(num_cells, n_init=1, random_state=0).fit(train.double().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(train.device)

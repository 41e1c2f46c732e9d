"""The Fréchet distance at 2,048 features: genray's, with the root of the reals kept, against scipy's sqrtm.

Both sides begin with the mean and the covariance of both sets, and end with the number. The peer is the formula as
pytorch-fid, clean-fid and the StyleGAN papers compute it: the matrix square root of the product of the covariances.
genray's `frechet_distance` takes the root of the reals' covariance, which it keeps beside their features, and the
eigenvalues of a symmetric product. The features are correlated and not negative, as those of Inception's last layer
are, with a spectrum that falls as a power law.

For each number of images the two values are compared: `error_N` is their relative difference, and beside it the
distance from `torch.linalg.eigvals`, torchmetrics' way, which says how exact scipy's root is.
"""

import argparse

import scipy.linalg
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from turns import Side, compare, conditions, finish, parser, say, timed

from genray.evaluation.frechet import Moments, frechet_distance

WIDTH = 2048
GOAL, GOAL_ERROR = 10.0, 1e-9


def features(num: int, seed: int) -> Tensor:
    """(num, WIDTH), float32; those of seed 0 are the reals."""
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))
    mixing *= torch.arange(1, WIDTH + 1)[:, None] ** -0.5
    points = torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed)) @ mixing
    return (points + 0.1 * (seed > 0)).relu()


def by_matrix_root(a: Moments, b: Moments) -> float:
    """Heusel's formula word by word."""
    root = torch.from_numpy(scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real)
    return _formula(a, b, float(root.trace()))


def by_eigenvalues(a: Moments, b: Moments) -> float:
    """The same with the eigenvalues of the unsymmetric product."""
    return _formula(a, b, float(torch.linalg.eigvals(a.covariance @ b.covariance).sqrt().real.sum()))


def _formula(a: Moments, b: Moments, cross: float) -> float:
    shift = float((a.mean - b.mean).square().sum())
    return shift + float(a.covariance.trace() + b.covariance.trace()) - 2 * cross


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        finish("fid_distance", measure(options) | conditions(options, "scipy", "numpy"))


def arguments() -> argparse.Namespace:
    made = parser(__doc__, turns=3, seconds=4.0)
    made.add_argument("--num-images", type=int, nargs="+", default=[5_000, 10_000], help="images of each set")
    return made.parse_args()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """The ratio of speeds, and how much the values differ."""
    figures: dict[str, object] = {"width": WIDTH}
    errors = []
    for num in options.num_images:
        reals, fakes = (Moments.of(features(num, seed)) for seed in (0, 1))
        ours, theirs, other = frechet_distance(reals, fakes), by_matrix_root(reals, fakes), by_eigenvalues(reals, fakes)
        errors.append(abs(ours - theirs) / theirs)
        figures |= {f"error_{num}": errors[-1], f"error_{num}_eigenvalues": abs(ours - other) / other}
        say(f"{num} images: {ours!r}, scipy {theirs!r}, eigenvalues {other!r}")
    root = reals.root
    sides = (
        Side("genray", timed(lambda: frechet_distance(reals, fakes, root))),
        Side("scipy", timed(lambda: by_matrix_root(reals, fakes))),
    )
    speed = compare(*sides, options)
    reached = speed["ratio"] >= GOAL and max(errors) <= GOAL_ERROR
    return speed | figures | {"goal": GOAL, "goal_error": GOAL_ERROR, "reached": reached}


if __name__ == "__main__":
    main()

"""The Fréchet distance between two sets of features, each seen as a Gaussian.

Heusel et al. 2017, arXiv:1706.08500. Features come in batches and from several
processes; only their moments are kept, in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genray.errors import ProtocolError


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features: all that the distance needs, and can be merged."""

    count: int
    mean: Tensor
    """(D,), float64."""
    scatter: Tensor
    """(D, D), float64: sum over features of the outer product of their deviation from the mean."""

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Moments of features (N, D), of any floating type; N may be 0."""
        exact = features.double()
        mean = exact.mean(0) if len(exact) else exact.new_zeros(exact.shape[1])
        centred = exact - mean
        return cls(len(exact), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together; the order matters to the last bits of float64 only.

        Chan, Golub and LeVeque 1979: exact, and without the cancellation of sums of squares.
        """
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = torch.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def update(self, features: Tensor) -> "Moments":
        """Moments of this set and of `features` (N, D) together."""
        return self.merge(Moments.of(features))

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (D, D), float64.

        Raises:
            ProtocolError: fewer than two features were seen.
        """
        if self.count < 2:
            raise ProtocolError(f"a covariance needs at least 2 images, got {self.count}; raise eval.num_samples")
        return self.scatter / (self.count - 1)

    @property
    def root(self) -> Tensor:
        """Symmetric root of the covariance, (D, D), float64; costs half of a distance, so worth keeping."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


def frechet_distance(a: Moments, b: Moments, root_of_a: Tensor | None = None) -> float:
    """Squared Fréchet distance between the Gaussians with these moments, not negative.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). With R the root of A, the eigenvalues of
    A B are those of R B R, which is symmetric: they are real, and negative by rounding only.
    With fewer images than D the covariances are singular: the value is defined and biased
    upwards, more so the fewer the images, so compare it only at equal counts.

    Args:
        a: e.g. of the reals.
        b: e.g. of the fakes, of the same width D.
        root_of_a: `a.root`, where it is known already.

    Raises:
        ProtocolError: a set has fewer than two images, or the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ProtocolError(
            f"features are {len(a.mean)} and {len(b.mean)} wide, expected one width; take one extractor for both"
        )
    root = a.root if root_of_a is None else root_of_a
    product = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    squared = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(squared))

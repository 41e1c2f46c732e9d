"""Penalties: on how steeply logits depend on samples, on where they lie, and on how far images move with styles."""

import torch
from torch import Tensor, nn

from genray import distributed
from genray.models.double_backward import of_maps_alone
from genray.objectives.adversarial import one_per_sample

MEAN_DECAY = 0.99
"""Of the means of logits and of path lengths, per step in which they are taken."""
TINY = 1e-12
"""Added under the root of a squared length, whose derivative at 0 is infinite."""


def zero_centered_gradient_penalty(samples: Tensor, logits: Tensor) -> Tensor:
    """How steeply each logit depends on its own sample: the squared length of that gradient.

    R1 for reals, R2 for fakes (Mescheder et al. 2018, arXiv:1801.04406). Differentiable, so that
    it can be part of a loss.

    Args:
        samples: (B, *sample_shape), requires grad; `logits` were computed from this tensor itself.
        logits: (B,), unbounded; each depends on its own sample only, or nearly (minibatch deviation).

    Returns:
        (B,), non-negative, without a weight: the caller takes the mean and multiplies by gamma / 2.

    Raises:
        ValueError: `logits` is not (B,).
    """
    one_per_sample(logits, samples)
    with of_maps_alone():
        (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.square().sum(dim=tuple(range(1, gradient.ndim)))


def unit_gradient_penalty(samples: Tensor, logits: Tensor) -> Tensor:
    """How far the length of each logit's gradient is from 1, squared (Gulrajani et al. 2017, arXiv:1704.00028).

    Args:
        samples: (B, *sample_shape), requires grad, between reals and fakes; `logits` were computed from it.
        logits: (B,), unbounded.

    Returns:
        (B,), non-negative, without a weight: the caller takes the mean and multiplies, in the paper by 10.

    Raises:
        ValueError: `logits` is not (B,).
    """
    return ((zero_centered_gradient_penalty(samples, logits) + TINY).sqrt() - 1).square()


def interpolates(reals: Tensor, fakes: Tensor, shares: Tensor) -> Tensor:
    """Points on the lines from reals (share 0) to fakes (share 1), (B, C, H, W), detached; requires grad.

    Args:
        reals: (B, C, H, W).
        fakes: (B, C, H, W).
        shares: (B, 1, 1, 1) in [0, 1].
    """
    return torch.lerp(reals.detach(), fakes.detach(), shares).requires_grad_()


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """How far each image moves with its style, seen along a random direction of its pixels: |Jᵀ y|, (B,).

    Karras et al. 2020, arXiv:1912.04958, section 3.2, of one style for all layers. Differentiable.

    Args:
        images: (B, C, H, W), computed from `styles`, each from its own alone.
        styles: (B, style_dim), with a graph or requiring one.
        noise: (B, C, H, W), standard normal; divided here by the root of H W.
    """
    height, width = images.shape[2:]
    along = (images * noise).sum() / (height * width) ** 0.5
    with of_maps_alone():
        (gradient,) = torch.autograd.grad(along, styles, create_graph=True)
    return (gradient.square().sum(dim=1) + TINY).sqrt()


class PathMean(nn.Module):
    """Running mean of path lengths over all ranks: what each is drawn to.

    A buffer: part of every checkpoint.
    """

    length: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("length", torch.zeros(()))

    def penalty(self, lengths: Tensor) -> Tensor:
        """Squared distances (B,) of path lengths (B,) from their mean, which moves towards them first."""
        with torch.no_grad():
            self.length.lerp_(distributed.mean(lengths.detach().mean()), 1 - MEAN_DECAY)
        return (lengths - self.length).square()


class LogitMeans(nn.Module):
    """Running means of the logits of reals and of fakes over all ranks (Tseng et al. 2021, arXiv:2104.03310).

    Buffers: part of every checkpoint.
    """

    reals: Tensor
    fakes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for side in ("reals", "fakes"):
            self.register_buffer(side, torch.zeros(()))

    def distance(self, side: str, logits: Tensor) -> Tensor:
        """Squared distance of logits (B,) of a side from the mean of the other, (B,)."""
        return (logits - (self.fakes if side == "reals" else self.reals)).square()

    @torch.no_grad()
    def update(self, side: str, logits: Tensor) -> None:
        """Moves the mean of a side towards that of this step's logits (B,) on every rank."""
        getattr(self, side).lerp_(distributed.mean(logits.mean()), 1 - MEAN_DECAY)

"""Penalties on how steeply a discriminator's logits depend on its samples."""

import torch
from torch import Tensor

from genray.objectives.adversarial import one_per_sample

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

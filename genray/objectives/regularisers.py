"""What a VAE is charged for its posterior.

Each is a mean over the global batch: value and gradient do not depend on the number of ranks.
"""

import math

import torch
from torch import Tensor

from genray import distributed

KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Widths of the kernel of the MMD, in squared distances of two draws from the prior."""


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of N(mu, exp(logvar)) from N(0, 1) per dimension, in nats: (B, latent_dim), non-negative.

    Args:
        mu: (B, latent_dim).
        logvar: (B, latent_dim).
    """
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def with_free_bits(kl: Tensor, free: float) -> Tensor:
    """Sum over dimensions of the mean divergence, of which each costs at least `free` nats and those below nothing: ().

    Kingma et al. 2016, arXiv:1606.04934, equation 15: the mean is that of the global batch.

    Args:
        kl: (B, latent_dim), nats.
        free: nats of each dimension.
    """
    own = kl.mean(dim=0)
    counted = distributed.mean(own.detach().clone()) > free
    return torch.where(counted, own, free).sum()


def distance_to_capacity(kl: Tensor, capacity: float) -> Tensor:
    """How far the mean divergence of the global batch is from `capacity` nats: ().

    Burgess et al. 2018, arXiv:1804.03599, equation 8. A rank's value may be negative; the mean over ranks is not.

    Args:
        kl: (), nats, the mean of this rank's images.
        capacity: nats.
    """
    side = torch.sign(distributed.mean(kl.detach().clone()) - capacity)
    return side * (kl - capacity)


def total_correlation(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of the aggregate posterior from the product of its marginals, estimated in a batch, in nats: ().

    Chen et al. 2018, arXiv:1802.04942, section 4.1, weighted by the minibatch: both densities of a latent are
    means over the posteriors of the global batch. A data set larger than the batch adds a constant, left out here.

    Args:
        z: (B, latent_dim), drawn from the posteriors below.
        mu: (B, latent_dim).
        logvar: (B, latent_dim).
    """
    means, logvars = distributed.gather(torch.stack([mu, logvar], dim=1)).unbind(dim=1)
    deviations = (z.unsqueeze(1) - means) * torch.exp(-0.5 * logvars)
    log_density = -0.5 * (deviations.square() + logvars + math.log(2 * math.pi))  # (B, global B, latent_dim)
    count = math.log(len(means))
    joint = torch.logsumexp(log_density.sum(dim=2), dim=1) - count
    marginals = torch.logsumexp(log_density, dim=1) - count
    return (joint - marginals.sum(dim=1)).mean()


def squared_mmd(samples: Tensor, prior: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of two sets of latents over the global batch, may be negative: ().

    Gretton et al. 2012, equation 3, with a sum of inverse multiquadratic kernels as in Tolstikhin et al. 2018,
    arXiv:1711.01558, section 4: heavy tails, so that far latents still feel the prior.

    Args:
        samples: (B, latent_dim), at least two in the global batch.
        prior: (B, latent_dim), standard normal.
    """
    both = distributed.gather(torch.stack([samples, prior], dim=1))
    x, y = both.unbind(dim=1)
    num, dim = x.shape
    within = [_kernel(a, a, dim).sum() - num * len(KERNEL_SCALES) for a in (x, y)]
    return (within[0] + within[1]) / (num * (num - 1)) - 2 * _kernel(x, y, dim).mean()


def _kernel(a: Tensor, b: Tensor, dim: int) -> Tensor:
    squared = (a.square().sum(dim=1).unsqueeze(1) + b.square().sum(dim=1) - 2 * a @ b.T).clamp(min=0)
    found = torch.zeros_like(squared)
    for scale in KERNEL_SCALES:
        width = 2 * dim * scale
        found = found + width / (width + squared)
    return found

"""Bounds of the log likelihood from several latents of an image, and estimators of their gradients.

Burda et al. 2016, arXiv:1509.00519 (IWAE); Rainforth et al. 2018, arXiv:1802.04537 (MIWAE, CIWAE, PIWAE);
Tucker et al. 2019, arXiv:1810.04152 (DReG).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genray.models.latent_distributions import normal_log_density

LEAST_LOG_SHARE = -60.0
"""Least log share of a group of samples in all of an image's, in nats: below it a share is nothing either way."""


def importance_bound(log_weights: Tensor) -> Tensor:
    """Mean over groups of the log of the mean of the importance weights, in nats: (B,).

    One group of many samples: IWAE; many groups of one: the ELBO; between them: MIWAE.

    Args:
        log_weights: (B, M, K), log p(x, z) - log q(z | x) of K samples in each of M groups.
    """
    return (torch.logsumexp(log_weights, dim=2) - math.log(log_weights.shape[2])).mean(dim=1)


def doubly_reparametrised(log_weights: Tensor, beta: float) -> Tensor:
    """Factors (B, M, K) of the gradient that comes back to each latent, for DReG where the KL counts `beta` times.

    The score of log q, which counts as often, becomes a gradient of the latents by the same identity: of the gradient
    by the path `beta` times the share of all other samples is taken away (Tucker et al. 2019, equations 6 and 8).
    """
    return 1 - beta + beta * log_weights.softmax(dim=2)


def log_ratio_of_latents(z: Tensor, mu: Tensor, logvar: Tensor, num: int) -> Tensor:
    """Differences log p(z) - log q(z | x) of latents of N(mu, exp(logvar)), (B, num), constant in mu and logvar.

    That is what DReG asks for, and that gradients of z are scaled by `doubly_reparametrised`.

    Args:
        z: (B * num, dim), those of an image together.
        mu: (B, dim).
        logvar: (B, dim).
        num: draws of an image.
    """
    draws = z.float().view(len(mu), num, -1)
    mu, logvar = mu.detach().float(), logvar.detach().float()
    deviations = (draws - mu.unsqueeze(1)) * torch.exp(-0.5 * logvar).unsqueeze(1)
    return normal_log_density(draws) - normal_log_density(deviations) + 0.5 * logvar.sum(dim=1, keepdim=True)


def combined_bound(log_weights: Tensor, share: float) -> Tensor:
    """`share` times the mean log weight (ELBO) plus the rest times the IWAE bound of all samples, in nats: (B,)."""
    return share * log_weights.mean(dim=(1, 2)) + (1 - share) * importance_bound(log_weights.flatten(1).unsqueeze(1))


def partial_bound(
    log_likelihood: Tensor, log_ratio: Tensor, scale_gradient: Callable[[Tensor], object], groups: int
) -> Tensor:
    """The IWAE bound of all samples, (B,), whose backward pass gives the encoder the gradient of MIWAE.

    The samples enter MIWAE with the softmax of their log weights over their group, and IWAE with that over
    all; the ratio of the two, laid on the gradient that the decoder hands back to the latents, is all that
    the two estimators differ by.

    Args:
        log_likelihood: (B, N), log p(x | z).
        log_ratio: (B, N), log p(z) - log q(z | x), which has no part in the decoder.
        scale_gradient: takes (B, N) factors of the gradient that comes back from the decoder to each latent.
        groups: M, which divides N.
    """
    log_weights = (log_likelihood + log_ratio).detach().view(len(log_ratio), groups, -1)
    group_shares = torch.logsumexp(log_weights, dim=2).log_softmax(dim=1).clamp(min=LEAST_LOG_SHARE)
    in_group = log_weights.softmax(dim=2)
    to_decoder = (in_group * group_shares.exp().unsqueeze(2)).flatten(1)
    to_encoder = (in_group / groups).flatten(1)
    scale_gradient(torch.exp(-group_shares - math.log(groups)).unsqueeze(2).expand_as(log_weights).flatten(1))
    surrogate = (to_decoder * log_likelihood + to_encoder * log_ratio).sum(dim=1)
    value = importance_bound(log_weights.flatten(1).unsqueeze(1))
    bound: Tensor = surrogate - surrogate.detach() + value
    return bound

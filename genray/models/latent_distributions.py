"""Distributions of latents: what one forward pass of a VAE says of them, flows that bend them, draws from a mixture.

Inverse autoregressive flow: Kingma et al. 2016, arXiv:1606.04934.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pass(NamedTuple):
    """What one forward pass says of B images with K draws of the latents of each."""

    parameters: Tensor
    """(B * K, P, H, W): of the distribution of the pixels, unbounded, the latents of an image in a row."""
    mu: Tensor
    """(B, latent_dim): mean of the normal distribution that the encoder names; of a hierarchy's finer maps given the
    first draw."""
    logvar: Tensor
    """(B, latent_dim): its log variance."""
    z: Tensor
    """(B * K, latent_dim): as the decoder took them; a hook here sees the decoder's gradient alone."""
    log_q: Tensor
    """(B, K), nats: log density of the latents under the posterior."""
    log_p: Tensor
    """(B, K), nats: and under the prior."""


class AutoregressiveFlow(nn.Module):
    """Each dimension moved and scaled by what a masked network says of those before it, and of the image."""

    first_mask: Tensor
    last_mask: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(64, 4 * dim)
        self.from_context = nn.Linear(dim, hidden)
        self.first, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, 2 * dim)
        inputs, units = torch.arange(dim), torch.arange(hidden) % max(1, dim - 1)
        self.register_buffer("first_mask", (units.unsqueeze(1) >= inputs).float() * (dim > 1), persistent=False)
        after = (inputs.unsqueeze(1) > units).float() if dim > 1 else torch.ones(1, hidden)
        self.register_buffer("last_mask", after.repeat(2, 1), persistent=False)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The latents moved, (B, K, dim), and the log of the volume that they gained, (B, K).

        Args:
            z: (B, K, dim).
            context: (B, dim).
        """
        linear = nn.functional.linear
        first = linear(z, self.first.weight * self.first_mask, self.first.bias)
        hidden = torch.relu(first + self.from_context(context).unsqueeze(1))
        shift, gate = linear(hidden, self.last.weight * self.last_mask, self.last.bias).float().chunk(2, dim=-1)
        # near the identity at first
        scale = torch.sigmoid(gate + 2)
        return scale * z + (1 - scale) * shift, torch.log(scale).sum(dim=-1)


def choose(noise: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B,) in `weights` (K,), chosen by the first number of each row, and noise that is standard normal again.

    Where the first number falls among the quantiles of its distribution chooses; where it falls within the chosen
    piece is uniform, and made normal again. So one draw of `noise` is one draw of a mixture.
    """
    ends = weights.double().cumsum(0)
    ends = ends / ends[-1]
    at = torch.special.ndtr(noise[:, 0].double())
    place = torch.searchsorted(ends, at, right=True).clamp(max=len(weights) - 1)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    within = ((at - starts[place]) / (ends - starts)[place]).clamp(1e-9, 1 - 1e-9)
    return place, torch.cat([torch.special.ndtri(within).unsqueeze(1).to(noise.dtype), noise[:, 1:]], dim=1)


def normal_log_density(z: Tensor) -> Tensor:
    """Log density of a standard normal distribution, in nats, over the last dimension of `z`."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)


def mixture_log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log density of an even mixture of N normal distributions without correlations, in nats: (B, K), fp32.

    Squared distances are products of matrices, since their differences, (B, K, N, dim), take gigabytes; in fp64, since
    these products cancel where a component is narrow.

    Args:
        z: (B, K, dim).
        mu: means of the components, (N, dim).
        logvar: their log variances, (N, dim).
    """
    z, mu, logvar = z.double(), mu.double(), logvar.double()
    precision = torch.exp(-logvar)
    squares = z.square() @ precision.T - 2 * z @ (mu * precision).T + (mu.square() * precision).sum(dim=1)
    each = -0.5 * (squares + (logvar + math.log(2 * math.pi)).sum(dim=1))
    return (torch.logsumexp(each, dim=2) - math.log(len(mu))).float()

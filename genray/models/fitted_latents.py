"""Distributions that are fitted to the latents of a trained autoencoder, and drawn from in place of its prior.

Each draws latents from standard normal numbers. Mixture of normal distributions: Ghosh et al. 2020, arXiv:1903.12436;
second VAE: Dai and Wipf 2019, arXiv:1903.05789; masked autoregressive flows: Papamakarios et al. 2017,
arXiv:1705.07057.
"""

import math

import torch
from torch import Tensor, nn

from genray.models.latent_distributions import choose, normal_log_density

LEAST_SCALE = 1e-6
"""Least standard deviation of a dimension that points are divided by."""
MOST_LOG_SCALE = 5.0
"""Bound of what one flow stretches a dimension by, as a logarithm."""


class Mixture(nn.Module):
    """Normal distributions with full covariances; all standard ones until they are fitted."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((num,), 1 / num))
        self.register_buffer("means", torch.zeros(num, dim))
        self.register_buffer("factors", torch.eye(dim).repeat(num, 1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Draws of the mixture, (B, dim), from standard normal numbers (B, dim)."""
        place, noise = choose(noise, self.weights)
        return self.means[place] + (self.factors[place] @ noise.unsqueeze(2)).squeeze(2)


class Scaling(nn.Module):
    """Points moved and scaled so that each dimension of those measured has mean 0 and variance 1."""

    centre: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @torch.no_grad()
    def measure(self, points: Tensor) -> None:
        """Takes mean and deviation of `points` (..., dim)."""
        flat = points.reshape(-1, points.shape[-1])
        self.centre.copy_(flat.mean(dim=0))
        self.scale.copy_(flat.std(dim=0).clamp(min=LEAST_SCALE))

    def forward(self, points: Tensor) -> Tensor:
        """(B, dim) of points (B, dim)."""
        return (points - self.centre) / self.scale

    def back(self, scaled: Tensor) -> Tensor:
        """Points (B, dim) of what `forward` gave."""
        return self.centre + self.scale * scaled

    @property
    def log_volume(self) -> Tensor:
        """Log of the volume that points gain by `forward`."""
        return -self.scale.log().sum()


class SecondStage(nn.Module):
    """A VAE of points with as many latents as they have dimensions, and a learned scale of each dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.scaling = Scaling(dim)
        self.encoder, self.decoder = _hidden_layers(dim, hidden), _hidden_layers(dim, hidden)
        self.to_posterior, self.to_points = nn.Linear(hidden + dim, 2 * dim), nn.Linear(hidden + dim, dim)
        # nearly an autoencoder at first: from a wide scale its latents say nothing for long
        self.log_sigma = nn.Parameter(torch.full((dim,), -2.0))

    def forward(self, noise: Tensor) -> Tensor:
        """Points drawn, (B, dim), from standard normal numbers (B, 2 * dim): latents, and what scatters around them."""
        u, scatter = noise.chunk(2, dim=1)
        return self.scaling.back(self._decode(u) + scatter * self.log_sigma.exp())

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of points (B, dim), each (B, dim)."""
        scaled = self.scaling(points)
        mu, logvar = self.to_posterior(torch.cat([self.encoder(scaled), scaled], dim=1)).chunk(2, dim=1)
        return mu, logvar.clamp(-20, 10)

    def log_joint(self, points: Tensor, u: Tensor) -> Tensor:
        """Log density of points (B, dim) with their latents (B, dim), in nats, (B,)."""
        deviations = (self.scaling(points) - self._decode(u)) * torch.exp(-self.log_sigma)
        given_u = normal_log_density(deviations) - self.log_sigma.sum() + self.scaling.log_volume
        return given_u + normal_log_density(u)

    def bound(self, points: Tensor, noise: Tensor) -> Tensor:
        """Lower bound of the log density of points (B, dim), in nats, (B,), by one draw of `noise` (B, dim)."""
        mu, logvar = self.posterior(points)
        u = mu + noise * torch.exp(0.5 * logvar)
        entropy = 0.5 * (logvar + math.log(2 * math.pi) + 1).sum(dim=1)
        return self.log_joint(points, u) + entropy

    def _decode(self, u: Tensor) -> Tensor:
        points: Tensor = self.to_points(torch.cat([self.decoder(u), u], dim=1))
        return points


class MaskedLinear(nn.Linear):
    """A linear layer of which only the weights remain where `mask` (outputs, inputs) is true."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs) of (B, inputs)."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class MaskedFlow(nn.Module):
    """Each dimension less a shift, divided by a scale, both of what a masked network says of those before it."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # a unit of degree d sees dimensions up to d, and has a say in those after it
        inputs, degrees = torch.arange(dim), torch.arange(hidden) % max(1, dim - 1)
        last = MaskedLinear((inputs.unsqueeze(1) > degrees).repeat(2, 1))
        self.network = nn.Sequential(
            MaskedLinear(degrees.unsqueeze(1) >= inputs),
            nn.ReLU(),
            MaskedLinear(degrees.unsqueeze(1) >= degrees),
            nn.ReLU(),
            last,
        )
        # the identity at first
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The points, (B, dim), less shift over scale, and the log of the volume that they gained, (B,)."""
        shift, log_scale = self._of_those_before(points)
        return (points - shift) * torch.exp(-log_scale), -log_scale.sum(dim=1)

    def inverse(self, moved: Tensor) -> Tensor:
        """Points (B, dim) that `forward` moved; one dimension after the other."""
        points = torch.zeros_like(moved)
        for index in range(moved.shape[1]):
            shift, log_scale = self._of_those_before(points)
            own = (moved * torch.exp(log_scale) + shift)[:, index : index + 1]
            points = torch.cat([points[:, :index], own, points[:, index + 1 :]], dim=1)
        return points

    def _of_those_before(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log scale of every dimension, each (B, dim)."""
        shift, raw = self.network(points).chunk(2, dim=1)
        return shift, MOST_LOG_SCALE * torch.tanh(raw / MOST_LOG_SCALE)


class MaskedFlows(nn.Module):
    """Masked autoregressive flows one after the other, each over the dimensions in the order reversed."""

    def __init__(self, num: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.scaling = Scaling(dim)
        self.flows = nn.ModuleList(MaskedFlow(dim, hidden) for _ in range(num))

    def forward(self, noise: Tensor) -> Tensor:
        """Points drawn, (B, dim), from standard normal numbers (B, dim): those that `normalise` takes to them."""
        for flow in reversed(self.flows):
            noise = flow.inverse(noise).flip(-1)  # type: ignore[operator]
        return self.scaling.back(noise)

    def normalise(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Normal numbers (B, dim) of points (B, dim), and the log of the volume that was gained, (B,)."""
        x = self.scaling(points)
        gained = self.scaling.log_volume.expand(len(x))
        for flow in self.flows:
            x, own = flow(x.flip(-1))
            gained = gained + own
        return x, gained

    def log_density(self, points: Tensor) -> Tensor:
        """Log density of points (B, dim), exact, in nats, (B,)."""
        x, gained = self.normalise(points)
        return normal_log_density(x) + gained


def _hidden_layers(dim: int, hidden: int) -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(dim, hidden), relu, nn.Linear(hidden, hidden), relu, nn.Linear(hidden, hidden), relu)

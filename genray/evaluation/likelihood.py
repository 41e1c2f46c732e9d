"""The likelihood of a VAE on images it was not trained on: its bound, its parts, and closer estimates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genray.errors import ConfigError, DivergenceError
from genray.evaluation.features import check_shape
from genray.objectives.elbo import ELBO, bound_of
from genray.objectives.regularisers import gaussian_kl
from genray.sampling import latents, to_float
from genray.snapshot import Snapshot
from genray.streams import derive_seed, generator

DRAWS_AT_ONCE = 8
"""Latents of an image that are decoded together, so that it is encoded once for all of them."""
NOISE_AT_ONCE = 2**26
"""Most numbers that latents are drawn from at a time, 256 MiB."""


@dataclass(frozen=True)
class Bounds:
    """The two parts of the bound of every image, in nats, each (N,), float64."""

    recon_nll: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Lower bound of log p(image), (N,); beta of the training has no part in it."""
        return -(self.recon_nll + self.kl)


@dataclass(frozen=True)
class Posteriors:
    """What the encoder says of every image, each (N, latent_dim), float64, on the CPU."""

    mu: Tensor
    logvar: Tensor

    @property
    def kl(self) -> Tensor:
        """Divergence from the prior in nats, (N, latent_dim), not negative."""
        return gaussian_kl(self.mu, self.logvar)


@torch.no_grad()
def bounds(
    vae: Snapshot,
    images: Tensor,
    seed: int,
    batch_size: int = 256,
    labels: Tensor | None = None,
    *,
    dequantize: bool = False,
) -> Bounds:
    """The bound of every image with one draw of its latent.

    Likelihood and binarisation are those of the snapshot's objective: bounds of snapshots that
    differ in them say different things, so they belong into the protocol.

    Args:
        vae: snapshot of a VAE, its module on any device.
        images: uint8 (N, C, H, W) of the model's shape.
        seed: of latents and binarisation, which do not depend on `batch_size`.
        batch_size: images per forward pass.
        labels: (N,) of the images; read if the VAE is conditional.
        dequantize: spread each of 256 levels evenly over its share of [0, 1], so that a density on it bounds the
            probability of the level (Theis et al. 2016, arXiv:1511.01844); the encoder sees the levels.

    Raises:
        ConfigError: the snapshot was not trained as a VAE, or something else was fitted to its latents.
        ProtocolError: the images have another shape.
        DivergenceError: a bound is not finite.
    """
    objective, module = _opened(vae, images)
    noise = latents(len(images), int(module.latent_dim), derive_seed(seed, "elbo/posterior"))
    within = generator(seed, "elbo/dequantize")
    recon_nll, kl = [], []
    for part, observed in _observations(vae, objective, images, seed, batch_size):
        found = module(2 * observed - 1, noise[part].to(observed.device), _labels(module, labels, part))
        targets = observed.double()
        if dequantize:
            targets = (255 * targets + torch.rand(targets.shape, generator=within).to(targets)) / 256
        recon_nll.append(objective.nll(found.parameters.double(), targets).cpu())
        exact = gaussian_kl(found.mu.double(), found.logvar.double()).sum(1)
        kl.append((exact if module.closed_kl else (found.log_q - found.log_p).double().squeeze(1)).cpu())
    taken = Bounds(torch.cat(recon_nll), torch.cat(kl))
    _check_finite(vae, "bound", taken.elbo)
    return taken


@torch.no_grad()
def posteriors(
    vae: Snapshot, images: Tensor, seed: int, batch_size: int = 256, labels: Tensor | None = None
) -> Posteriors:
    """The posterior of every image; `seed` is of the binarisation, and arguments and errors are those of `bounds`."""
    objective, module = _opened(vae, images)
    found = [
        module.encode(2 * observed - 1, _labels(module, labels, part))
        for part, observed in _observations(vae, objective, images, seed, batch_size)
    ]
    mu, logvar = (torch.cat([pair[i].double().cpu() for pair in found]) for i in (0, 1))
    _check_finite(vae, "posterior", (mu + logvar).sum(1))
    return Posteriors(mu, logvar)


@torch.no_grad()
def importance_nll(
    vae: Snapshot, images: Tensor, seed: int, num_draws: int, batch_size: int = 256, labels: Tensor | None = None
) -> Tensor:
    """-log p(image) in nats, (N,), float64, from `num_draws` importance samples: at most -elbo in the mean.

    Burda et al. 2016, arXiv:1509.00519, equation 8: -log of the mean of p(x, z) / q(z | x) over z
    from q. The bound tightens with the draws and is exact in the limit.

    Args:
        vae: snapshot of a VAE, its module on any device.
        images: uint8 (N, C, H, W) of the model's shape.
        seed: of latents and binarisation, the latter the same as in `bounds`.
        num_draws: latents of each image, at least 1.
        batch_size: latents per forward pass.
        labels: (N,) of the images; read if the VAE is conditional.

    Raises:
        ConfigError, ProtocolError, DivergenceError: as `bounds` does.
    """
    objective, module = _opened(vae, images)
    total = torch.full((len(images),), -math.inf, dtype=torch.float64)
    for first in range(0, num_draws, DRAWS_AT_ONCE):
        draws = range(first, min(first + DRAWS_AT_ONCE, num_draws))
        seeds = [derive_seed(seed, "nll/posterior", draw) for draw in draws]
        noises = _noises(seeds, len(images), int(module.latent_dim), per_pass := max(1, batch_size // len(draws)))
        for (part, observed), noise in zip(_observations(vae, objective, images, seed, per_pass), noises, strict=True):
            found = module(2 * observed - 1, noise.to(observed.device), _labels(module, labels, part))
            targets = observed.repeat_interleave(len(draws), 0).double()
            nll = objective.nll(found.parameters.double(), targets).view(-1, len(draws))
            weights = (found.log_p - found.log_q).double() - nll
            total[part] = torch.logaddexp(total[part], weights.logsumexp(1).cpu())
    result = math.log(num_draws) - total
    _check_finite(vae, "likelihood", result)
    return result


def _noises(seeds: list[int], num_images: int, dim: int, batch_size: int) -> Iterator[Tensor]:
    """Normal numbers (B, len(seeds), dim) of one batch of images after the other; all at once where they are few."""
    at_once = max(1, NOISE_AT_ONCE // (len(seeds) * dim))
    held = torch.empty(0, len(seeds), dim)
    for first in range(0, num_images, at_once):
        num = min(at_once, num_images - first)
        own = [derive_seed(seed, "nll/images", first) if first else seed for seed in seeds]
        held = torch.cat([held, torch.stack([latents(num, dim, seed) for seed in own], dim=1)])
        while len(held) >= batch_size:
            yield held[:batch_size]
            held = held[batch_size:]
    if len(held):
        yield held


def bits_per_dim(nats: float, num_dims: int, likelihood: str) -> float:
    """Negative log likelihood of an image of `num_dims` numbers, in bits for each.

    A bernoulli likelihood counts bits of black or white. A gaussian one is a density on [0, 1]: 256 levels a number
    make 8 bits more of it, so that it compares with models of discrete pixels if the levels were spread over [0, 1].
    """
    return nats / (num_dims * math.log(2)) + (8 if likelihood == "gaussian" else 0)


def has_likelihood(model: Snapshot) -> bool:
    """Whether the objective of the snapshot is a bound of the likelihood of what it draws."""
    return bound_of(model.config.objective) is not None and not _fitted(model)


def _fitted(model: Snapshot) -> str:
    return str(getattr(model.config.model, "fitted", ""))


def objective_of(vae: Snapshot) -> ELBO:
    """The objective of a VAE's snapshot.

    Raises:
        ConfigError: the snapshot was trained otherwise, or draws from something else than the prior of the bound.
    """
    objective = bound_of(vae.config.objective)
    if objective is None:
        raise ConfigError(
            f"snapshot of {vae.task!r} is a {vae.product}, which was not trained on a bound of the likelihood; "
            "elbo is scored of a VAE only"
        )
    if _fitted(vae):
        raise ConfigError(
            f"snapshot of {vae.task!r} draws from what was fitted to its latents (model.{_fitted(vae)}), and the bound "
            "is of the prior before; score fid, or the likelihood of the model that it was fitted to"
        )
    return objective


def _opened(vae: Snapshot, images: Tensor) -> tuple[ELBO, Any]:
    objective = objective_of(vae)
    check_shape("VAE", vae, images)
    return objective, vae.module.eval()


def _observations(
    vae: Snapshot, objective: ELBO, images: Tensor, seed: int, batch_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Places and pixels in [0, 1] (B, C, H, W), on the module's device, as the likelihood sees them; `seed` as ever."""
    source = generator(seed, "elbo/binarize")
    device = next(vae.module.parameters()).device
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        observed = (to_float(images[part]) + 1) / 2
        if objective.likelihood == "bernoulli" and objective.binarize:
            observed = (torch.rand(observed.shape, generator=source) < observed).float()
        yield part, observed.to(device)


def _labels(module: Any, labels: Tensor | None, part: slice) -> Tensor | None:
    return labels[part].to(next(module.parameters()).device) if module.num_labels and labels is not None else None


def _check_finite(vae: Snapshot, what: str, values: Tensor) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise DivergenceError(
            f"VAE {vae.task!r} gives a non-finite {what} for {bad} of {len(values)} images; "
            "its weights have diverged, take an earlier snapshot"
        )

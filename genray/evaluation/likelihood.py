"""The evidence lower bound of a VAE on images it was not trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genray.errors import ConfigError, DivergenceError
from genray.evaluation.features import check_shape
from genray.objectives.elbo import ELBO, bernoulli_nll, gaussian_kl, gaussian_nll
from genray.sampling import latents, to_float
from genray.snapshot import Snapshot
from genray.streams import derive_seed, generator


@dataclass(frozen=True)
class Bounds:
    """The two parts of the bound of every image, in nats, each (N,), float64."""

    recon_nll: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Lower bound of log p(image), (N,); beta of the training has no part in it."""
        return -(self.recon_nll + self.kl)


@torch.no_grad()
def bounds(vae: Snapshot, images: Tensor, seed: int, batch_size: int = 256) -> Bounds:
    """The bound of every image with one draw of its latent.

    Likelihood and binarisation are those of the snapshot's objective: bounds of snapshots that
    differ in them say different things, so they belong into the protocol.

    Args:
        vae: snapshot of a VAE, its module on any device.
        images: uint8 (N, C, H, W) of the model's shape.
        seed: of latents and binarisation, which do not depend on `batch_size`.
        batch_size: images per forward pass.

    Raises:
        ConfigError: the snapshot was not trained as a VAE.
        ProtocolError: the images have another shape.
        DivergenceError: a bound is not finite.
    """
    objective = objective_of(vae)
    check_shape("VAE", vae, images)
    module = vae.module.eval()
    device = next(module.parameters()).device
    pixels_source = generator(seed, "elbo/binarize")
    latent_dim = int(module.latent_dim)  # type: ignore[arg-type]
    noise = latents(len(images), latent_dim, derive_seed(seed, "elbo/posterior"))
    recon_nll, kl = [], []
    for start in range(0, len(images), batch_size):
        observed = (to_float(images[start : start + batch_size]) + 1) / 2
        if objective.likelihood == "bernoulli" and objective.binarize:
            observed = (torch.rand(observed.shape, generator=pixels_source) < observed).float()
        observed = observed.to(device)
        logits, mu, logvar = module(2 * observed - 1, noise[start : start + batch_size].to(device))
        if objective.likelihood == "bernoulli":
            nll = bernoulli_nll(logits.double(), observed.double())
        else:
            nll = gaussian_nll(torch.sigmoid(logits.double()), observed.double(), objective.sigma)
        recon_nll.append(nll.cpu())
        kl.append(gaussian_kl(mu.double(), logvar.double()).sum(1).cpu())
    found = Bounds(torch.cat(recon_nll), torch.cat(kl))
    bad = int((~found.elbo.isfinite()).sum())
    if bad:
        raise DivergenceError(
            f"VAE {vae.task!r} gives a non-finite bound for {bad} of {len(images)} images; "
            "its weights have diverged, take an earlier snapshot"
        )
    return found


def objective_of(vae: Snapshot) -> ELBO:
    """The objective of a VAE's snapshot.

    Raises:
        ConfigError: the snapshot was trained otherwise.
    """
    objective = vae.config.objective
    if not isinstance(objective, ELBO):
        raise ConfigError(
            f"snapshot of {vae.task!r} is a {vae.product}, which has no likelihood; elbo is scored of a VAE only"
        )
    return objective

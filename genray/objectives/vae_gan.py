"""A VAE whose reconstructions are compared by the features of a discriminator, which judges its images too.

Larsen et al. 2016, arXiv:1512.09300, algorithm 1, with a non-saturating or hinge loss of the decoder in place of the
negative of the discriminator's.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genray.models.pixel_distributions import mean_images
from genray.objectives.adversarial import generator_loss, margin_loss, one_per_sample
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.elbo import ACTIVE_VARIANCE
from genray.objectives.matching import require_modules
from genray.objectives.regularisers import gaussian_kl


class Made(NamedTuple):
    """What the VAE makes of a batch, with its graph."""

    mu: Tensor
    """(B, latent_dim)."""
    logvar: Tensor
    """(B, latent_dim)."""
    reconstructions: Tensor
    """(B, C, H, W) in [-1, 1]; a gradient goes on to the encoder, `1 / gamma` times."""
    fakes: Tensor
    """(2B, C, H, W) in [-1, 1]: the same images, and those of draws of the prior; a gradient ends in the decoder."""


@dataclass(frozen=True, kw_only=True)
class VAEGAN:
    """Encoder: divergence and feature distance. Decoder: that distance times gamma, and what the discriminator says.

    Discriminator: reals apart from reconstructions and from images of draws of the prior, each with weight 1.
    """

    form: Literal["non-saturating", "hinge", "least-squares"] = "non-saturating"
    """What logits cost."""
    beta: float = 1.0
    """Weight of the divergence of the posterior from N(0, 1), in nats."""
    gamma: float = 0.3
    """Weight, for the decoder, of half the squared distance of features, beside the adversarial loss."""

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"objective.beta={self.beta!r} must be at least 0")
        if not self.gamma > 0:
            raise ValueError(
                f"objective.gamma={self.gamma!r} must be above 0: without it nothing ties an image to its latent; "
                "take e.g. 0.3, or a GAN"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Discriminator, then autoencoder."""
        return Phase("discriminator", parts=("reals", "fakes")), Phase("vae")

    @property
    def product(self) -> str:
        """The autoencoder."""
        return "vae"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, another prior or posterior, or a likelihood of pixels."""
        require_modules("vae-gan", ("vae", "discriminator"), model, judges="images")
        for name in ("num_flows", "num_pseudo_inputs"):
            if getattr(model, name):
                raise ValueError(
                    f"model.{name}={getattr(model, name)} makes another prior or posterior than the normal ones of "
                    f"objective vae-gan; set model.{name} to 0"
                )
        if model.output != "logits":
            raise ValueError(
                f"model.output={model.output!r} says how pixels scatter, which objective vae-gan does not read; "
                "set --model.output logits"
            )

    def prepare(self, networks: Networks, batch: Batch) -> Made:
        """Reconstructions of the batch and images of as many draws of the prior."""
        bare: Any = networks.bare["vae"]
        labels = batch.labels if bare.num_labels else None
        found = networks.wrapped["vae"](batch.images, batch.draws.normal("posterior", bare.latent_dim), labels)
        # the feature distance reaches the decoder gamma times, and the encoder once
        found.z.register_hook(lambda gradient: gradient / self.gamma)
        # decoded again: what the discriminator says of a reconstruction is not for the encoder
        z = torch.cat([found.z.detach(), batch.draws.normal("prior", bare.latent_dim)])
        fakes = bare.decode(z, None if labels is None else labels.repeat(2))
        return Made(
            found.mu.float(),
            found.logvar.float(),
            mean_images(found.parameters, bare.output),
            mean_images(fakes, bare.output),
        )

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Made
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a part of a phase, and its metrics; `shared` is what `prepare` gave."""
        if phase == "vae":
            return self._vae_loss(networks, batch, shared)
        images, sign = (batch.images, 1.0) if part == "reals" else (shared.fakes.detach(), -1.0)
        logits = one_per_sample(networks.wrapped["discriminator"](images, _labels(networks, batch, images)), images)
        # the mean over two kinds of fakes, each with weight 1, is half of their sum
        loss = margin_loss(self.form, sign * logits).mean() * len(images) / len(batch.images)
        return loss, {
            f"discriminator/loss_{part}": loss.detach(),
            f"discriminator/logits_{part}": logits.detach().mean(),
            f"discriminator/accuracy_{part}": (sign * logits.detach() > 0).float().mean(),
        }

    def _vae_loss(self, networks: Networks, batch: Batch, made: Made) -> tuple[Tensor, dict[str, Tensor]]:
        judge: Any = networks.bare["discriminator"]
        with torch.no_grad():
            wanted = judge.layers(batch.images).float()
        found = judge.layers(made.reconstructions).float()
        distance = 0.5 * (found - wanted).square().flatten(1).sum(dim=1).mean()
        logits = one_per_sample(judge(made.fakes, _labels(networks, batch, made.fakes)), made.fakes)
        adversarial = 2 * generator_loss(self.form, logits).mean()
        kl = gaussian_kl(made.mu, made.logvar).sum(dim=1).mean()
        loss = self.beta * kl + self.gamma * distance + adversarial
        metrics = {
            "vae/loss": loss,
            "vae/kl": kl,
            "vae/feature_distance": distance,
            "vae/adversarial": adversarial,
            "vae/squared_error": (made.reconstructions - batch.images).square().mean() / 4,
            "vae/active_units": (made.mu.detach().var(0, correction=0) > ACTIVE_VARIANCE).float().sum(),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}


def _labels(networks: Networks, batch: Batch, images: Tensor) -> Tensor | None:
    """Labels of images that are the batch, or made of it once or twice over; None: there are none to tell."""
    bare: Any = networks.bare["discriminator"]
    return batch.labels.repeat(len(images) // len(batch.images)) if bare.num_labels else None

"""Variational autoencoders of one vector of latents.

Kingma and Welling 2014, arXiv:1312.6114; conditional: Sohn et al. 2015; VampPrior: Tomczak and Welling 2018,
arXiv:1705.07120.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genray.models.fitted_latents import MaskedFlows, Mixture, SecondStage
from genray.models.knobs import at_least, given, levels
from genray.models.latent_distributions import AutoregressiveFlow, Pass, choose, mixture_log_density, normal_log_density
from genray.models.pixel_distributions import Output, mean_images, num_outputs

LOGVAR_RANGE = (-20.0, 10.0)
"""Bounds of the posterior's log variance: its exponential stays finite whatever the encoder says."""
_FITTED = ("num_components", "second_stage", "num_masked_flows")


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What architectures of VAEs have in common: everything about latents and pixels."""

    latent_dim: int = 32
    """Numbers in a latent z."""
    output: Output = "logits"
    """What the decoder says of a pixel: logits, with its own or one global scale beside them, or a mixture."""
    conditional: bool = False
    """Encoder and decoder are told the label."""
    num_flows: int = 0
    """Autoregressive flows that bend the posterior; 0: normal with independent dimensions."""
    num_pseudo_inputs: int = 0
    """Learned images whose posteriors, mixed, are the prior (VampPrior); 0: standard normal."""
    num_components: int = 0
    """Normal distributions that are fitted to the latents after training, and drawn from; 0: the prior is."""
    second_stage: int = 0
    """Units of each hidden layer of a second VAE that is fitted to the latents after training, and drawn from; 0: none
    is."""
    num_masked_flows: int = 0
    """Masked autoregressive flows that are fitted to the latents after training, and drawn from; 0: none are."""

    def __post_init__(self) -> None:
        at_least(1, self, "latent_dim")
        at_least(0, self, "num_flows", "num_pseudo_inputs", *_FITTED)
        fitted = [f"model.{name}={getattr(self, name)}" for name in _FITTED if getattr(self, name)]
        if len(fitted) > 1:
            raise ValueError(f"{' and '.join(fitted)} are both fitted to the latents; set all but one to 0")
        if self.num_pseudo_inputs and (self.conditional or self.num_flows):
            other = "conditional=True" if self.conditional else f"num_flows={self.num_flows}"
            raise ValueError(
                f"model.num_pseudo_inputs={self.num_pseudo_inputs} does not go with model.{other}: learned images "
                "have no label, and a bent posterior has no density at latents of others; set one to its default"
            )

    @property
    def fitted(self) -> str:
        """The knob of what was fitted to the latents after training; empty: nothing was."""
        return next((name for name in _FITTED if getattr(self, name)), "")

    @property
    def encoder_dim(self) -> int:
        """Numbers that an encoder ends in: mean, log variance, and what flows are told."""
        return (3 if self.num_flows else 2) * self.latent_dim

    def decoder_dim(self, num_classes: int) -> int:
        """Numbers that a decoder begins with."""
        return self.latent_dim + num_classes * self.conditional

    def seen_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """What the encoder sees: a conditional one has a plane more, of the label."""
        return (image_shape[0] + self.conditional, *image_shape[1:])


@dataclass(frozen=True, kw_only=True)
class ConvVAE(Latents):
    """Strided convolutions down to a base of 4 to 7 pixels on the smaller side, and back.

    Level i, counted from the image, has `min(max_width, width * 2**i)` channels. Batch norm takes
    its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("vae",)

    width: int = 32
    """Channels at the level next to the image."""
    max_width: int = 256
    """Most channels of any level."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution but the decoder's last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "width", "max_width")
        if self.num_pseudo_inputs and self.norm == "batch":
            raise ValueError(
                f"model.num_pseudo_inputs={self.num_pseudo_inputs} encodes learned images beside real ones, and "
                "model.norm='batch' would mix their statistics; set --model.norm none"
            )

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        try:
            _map_sizes(self, image_shape)
        except ValueError as error:
            raise ValueError(f"{error}, or choose model mlp-vae") from None

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); labels are those of a conditional one.

        Raises:
            ValueError: a size that cannot be made.
        """
        encoder = _conv_encoder(self, self.seen_shape(image_shape))
        decoder = _conv_decoder(self, image_shape, self.decoder_dim(num_classes))
        return {"vae": VAE(encoder, decoder, self, image_shape, num_classes)}


@dataclass(frozen=True, kw_only=True)
class MLPVAE(Latents):
    """Fully connected layers on the flattened image; any size, best below 32 x 32 pixels."""

    modules: ClassVar[tuple[str, ...]] = ("vae",)

    latent_dim: int = 20
    """Numbers in a latent z."""
    hidden: int = 400
    """Units of each hidden layer."""
    num_layers: int = 1
    """Hidden layers of the encoder, and of the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "hidden", "num_layers")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Any size will do."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); labels are those of a conditional one."""
        num_pixels = math.prod(self.seen_shape(image_shape))
        hidden = [self.hidden] * self.num_layers
        encoder = nn.Sequential(Grey(), nn.Flatten(), *_dense([num_pixels, *hidden, self.encoder_dim]))
        shape = (num_outputs(self.output, image_shape[0]), *image_shape[1:])
        decoder = nn.Sequential(
            *_dense([self.decoder_dim(num_classes), *hidden, math.prod(shape)]), nn.Unflatten(1, shape)
        )
        return {"vae": VAE(encoder, decoder, self, image_shape, num_classes)}


@dataclass(frozen=True, kw_only=True)
class AdversarialVAE(MLPVAE):
    """The same beside a discriminator of latents."""

    modules: ClassVar[tuple[str, ...]] = ("vae", "discriminator")
    judges: ClassVar[str] = "latents"

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W), and a `discriminator` with its hidden layers twice."""
        sizes = [self.latent_dim, *[self.hidden] * (2 * self.num_layers), 1]
        judge = LatentDiscriminator(nn.Sequential(*_dense(sizes)), self.latent_dim)
        return super().build(image_shape, num_classes) | {"discriminator": judge}


class Grey(nn.Module):
    """Images in [-1, 1] to [0, 1]: with black at 0 not every weight of a first layer pulls where pages are empty."""

    def forward(self, images: Tensor) -> Tensor:
        """Of the same shape."""
        return (images + 1) / 2


class LatentDiscriminator(nn.Module):
    """One logit a latent."""

    def __init__(self, layers: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.layers = layers

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,) of latents (B, latent_dim); labels are not used."""
        logits: Tensor = self.layers(z).squeeze(1)
        return logits


class VAE(nn.Module):
    """An encoder of images, latents drawn from their posterior, and a decoder of them to (B, P, H, W).

    `output` says P: channels of a scale follow those of the logits; of a mixture see `mixture_parts`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        knobs: Latents,
        image_shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        dim = knobs.latent_dim
        # normal numbers that an image is made of: draws of a second stage scatter around its decoder's means
        self.latent_dim = 2 * dim if knobs.second_stage else dim
        self.num_labels = num_classes if knobs.conditional else 0
        self.output = knobs.output
        self.closed_kl = not knobs.num_flows and not knobs.num_pseudo_inputs
        self.encoder = encoder
        self.decoder = decoder
        self.flows = nn.ModuleList(AutoregressiveFlow(dim) for _ in range(knobs.num_flows))
        if self.output == "global-scale":
            self.log_sigma = nn.Parameter(torch.zeros(()))
        if knobs.conditional:
            self.label_plane = nn.Embedding(num_classes, image_shape[1] * image_shape[2])
        self.pseudo_inputs = None
        if knobs.num_pseudo_inputs:
            self.pseudo_inputs = nn.Parameter(torch.randn(knobs.num_pseudo_inputs, *image_shape))
        self.mixture = Mixture(knobs.num_components, dim) if knobs.num_components else None
        self.second_stage = SecondStage(dim, knobs.second_stage) if knobs.second_stage else None
        self.masked_flows = None
        if knobs.num_masked_flows:
            self.masked_flows = MaskedFlows(knobs.num_masked_flows, dim, max(64, 8 * dim))

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior before any flow, each (B, latent_dim), fp32.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,), int64, if conditional.
        """
        return self._posterior(images, labels)[:2]

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """What is said of the pixels, (B, P, H, W), unbounded, of the latents (B, latent_dim)."""
        if self.num_labels:
            told = nn.functional.one_hot(given(labels, self.num_labels), self.num_labels)
            z = torch.cat([z, told.to(z.dtype)], dim=1)
        decoded: Tensor = self.decoder(z)
        if self.output == "global-scale":
            decoded = torch.cat([decoded, self.log_sigma.to(decoded.dtype).expand_as(decoded)], dim=1)
        return decoded

    def from_prior(self, noise: Tensor) -> Tensor:
        """Latents that are distributed as the prior, or what was fitted, where `noise` (B, latent_dim) is normal."""
        for fitted in (self.mixture, self.second_stage, self.masked_flows):
            if fitted is not None:
                return fitted(noise)  # type: ignore[no-any-return]
        if self.pseudo_inputs is None:
            return noise
        mu, logvar = self.encode(torch.tanh(self.pseudo_inputs))
        even = torch.full((len(mu),), 1 / len(mu), device=mu.device)
        place, noise = choose(noise, even)
        return mu[place] + noise * torch.exp(0.5 * logvar[place])

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean images (B, C, H, W) in [-1, 1] of normal numbers (B, latent_dim), and labels if conditional."""
        return mean_images(self.decode(self.from_prior(z), labels), self.output)

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as they come back through the middle of their posterior."""
        mu, logvar, context = self._posterior(images, labels)
        z, _ = self._draw(mu, logvar, context, torch.zeros_like(mu).unsqueeze(1))
        return mean_images(self.decode(z.squeeze(1), labels), self.output)

    def forward(self, images: Tensor, noise: Tensor, labels: Tensor | None = None) -> Pass:
        """The posterior of each image, latents drawn from it, and what the decoder says of them.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, latent_dim) or (B, K, latent_dim), standard normal.
            labels: (B,), int64, if conditional.
        """
        mu, logvar, context = self._posterior(images, labels)
        noise = noise if noise.ndim == 3 else noise.unsqueeze(1)
        z, log_q = self._draw(mu, logvar, context, noise)
        taken = z.flatten(0, 1)
        repeated = None if labels is None else labels.repeat_interleave(noise.shape[1])
        return Pass(self.decode(taken, repeated), mu, logvar, taken, log_q, self._log_prior(z))

    def _posterior(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.num_labels:
            plane = self.label_plane(given(labels, self.num_labels)).view(len(images), 1, *images.shape[2:])
            images = torch.cat([images, plane.to(images.dtype)], dim=1)
        mu, logvar, *context = self.encoder(images).float().chunk(3 if self.flows else 2, dim=1)
        return mu, logvar.clamp(*LOGVAR_RANGE), context[0] if context else None

    def _draw(self, mu: Tensor, logvar: Tensor, context: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, K, dim) of noise (B, K, dim), of which a second stage has more, and their log density (B, K)."""
        noise = noise[..., : mu.shape[1]]
        z = mu.unsqueeze(1) + noise * torch.exp(0.5 * logvar).unsqueeze(1)
        log_q = normal_log_density(noise) - 0.5 * logvar.sum(dim=1, keepdim=True)
        for flow in self.flows:
            z, log_scale = flow(z.flip(-1), context)
            log_q = log_q - log_scale
        return z, log_q

    def _log_prior(self, z: Tensor) -> Tensor:
        if self.pseudo_inputs is None:
            return normal_log_density(z)
        mu, logvar = self.encode(torch.tanh(self.pseudo_inputs))
        return mixture_log_density(z, mu, logvar)


def _conv_encoder(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> nn.Module:
    widths, base = _map_sizes(knobs, image_shape)
    widths = [image_shape[0], *widths]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=knobs.norm == "none"), *_norm_relu(knobs.norm, after)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * math.prod(base), knobs.encoder_dim))


def _conv_decoder(knobs: ConvVAE, image_shape: tuple[int, int, int], dim: int) -> nn.Module:
    widths, base = _map_sizes(knobs, image_shape)
    widths.reverse()
    layers: list[nn.Module] = [nn.Linear(dim, widths[0] * math.prod(base)), nn.Unflatten(1, (widths[0], *base))]
    layers += _norm_relu(knobs.norm, widths[0])
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=knobs.norm == "none")]
        layers += _norm_relu(knobs.norm, after)
    last = num_outputs(knobs.output, image_shape[0])
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], last, 4, 2, 1))


def _map_sizes(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> tuple[list[int], tuple[int, int]]:
    """Channels of each level that has a convolution, from the image inwards, and the sides of the smallest map."""
    widths, base = levels("conv-vae", image_shape, knobs.width, knobs.max_width)
    return widths[:-1], base


def _dense(sizes: list[int]) -> list[nn.Module]:
    """Linear layers through these sizes with ReLU in between."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def _norm_relu(kind: str, channels: int) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm2d(channels)] if kind == "batch" else []
    return [*norm, nn.ReLU(inplace=True)]

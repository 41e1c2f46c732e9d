"""Variational autoencoders of one vector of latents.

Kingma and Welling 2014, arXiv:1312.6114; conditional: Sohn et al. 2015; VampPrior: Tomczak and Welling 2018,
arXiv:1705.07120; inverse autoregressive flow: Kingma et al. 2016, arXiv:1606.04934. What a decoder says of
the pixels is named by `output`: `logits`, whose sigmoid is the probability (Bernoulli) or the mean (Gaussian)
of a pixel in [0, 1]; the same with a log standard deviation per pixel, or one for all (Rybkin et al. 2021,
arXiv:2006.13202); or a mixture of logistic distributions (Salimans et al. 2017, arXiv:1701.05517).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

LOGVAR_RANGE = (-20.0, 10.0)
"""Bounds of the posterior's log variance: its exponential stays finite whatever the encoder says."""
LEAST_LOG_SIGMA = -6.0
"""Least log standard deviation of a pixel on a scale of 0 to 1: well below a grey level."""
NUM_LOGISTICS = 10
"""Logistic distributions in the mixture of a pixel."""

Output = Literal["logits", "scale", "global-scale", "logistic-mixture"]


class Pass(NamedTuple):
    """What one forward pass says of B images with K latents of each."""

    parameters: Tensor
    """(B * K, P, H, W): of the distribution of the pixels, unbounded, the latents of an image in a row."""
    mu: Tensor
    """(B, latent_dim): mean of the normal distribution that the encoder names."""
    logvar: Tensor
    """(B, latent_dim): its log variance."""
    z: Tensor
    """(B * K, latent_dim): as the decoder took them; a hook here sees the decoder's gradient alone."""
    log_q: Tensor
    """(B, K), nats: log density of the latents under the posterior."""
    log_p: Tensor
    """(B, K), nats: and under the prior."""


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

    def __post_init__(self) -> None:
        _at_least(1, self, "latent_dim")
        _at_least(0, self, "num_flows", "num_pseudo_inputs", "num_components")
        if self.num_pseudo_inputs and (self.conditional or self.num_flows):
            other = "conditional=True" if self.conditional else f"num_flows={self.num_flows}"
            raise ValueError(
                f"model.num_pseudo_inputs={self.num_pseudo_inputs} does not go with model.{other}: learned images "
                "have no label, and a bent posterior has no density at latents of others; set one to its default"
            )

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
        _at_least(1, self, "width", "max_width")
        if self.num_pseudo_inputs and self.norm == "batch":
            raise ValueError(
                f"model.num_pseudo_inputs={self.num_pseudo_inputs} encodes learned images beside real ones, and "
                "model.norm='batch' would mix their statistics; set --model.norm none"
            )

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        _num_doublings(image_shape)

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
        _at_least(1, self, "hidden", "num_layers")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Any size will do."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); labels are those of a conditional one."""
        num_pixels = math.prod(self.seen_shape(image_shape))
        hidden = [self.hidden] * self.num_layers
        encoder = nn.Sequential(nn.Flatten(), *_dense([num_pixels, *hidden, self.encoder_dim]))
        shape = (num_outputs(self.output, image_shape[0]), *image_shape[1:])
        decoder = nn.Sequential(
            *_dense([self.decoder_dim(num_classes), *hidden, math.prod(shape)]), nn.Unflatten(1, shape)
        )
        return {"vae": VAE(encoder, decoder, self, image_shape, num_classes)}


@dataclass(frozen=True, kw_only=True)
class AdversarialVAE(MLPVAE):
    """The same beside a discriminator of latents."""

    modules: ClassVar[tuple[str, ...]] = ("vae", "discriminator")

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W), and a `discriminator` with its hidden layers twice."""
        sizes = [self.latent_dim, *[self.hidden] * (2 * self.num_layers), 1]
        judge = LatentDiscriminator(nn.Sequential(*_dense(sizes)), self.latent_dim)
        return super().build(image_shape, num_classes) | {"discriminator": judge}


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
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_classes if knobs.conditional else 0
        self.output = knobs.output
        self.closed_kl = not knobs.num_flows and not knobs.num_pseudo_inputs
        self.encoder = encoder
        self.decoder = decoder
        self.flows = nn.ModuleList(AutoregressiveFlow(self.latent_dim) for _ in range(knobs.num_flows))
        if self.output == "global-scale":
            self.log_sigma = nn.Parameter(torch.zeros(()))
        if knobs.conditional:
            self.label_plane = nn.Embedding(num_classes, image_shape[1] * image_shape[2])
        self.pseudo_inputs = None
        if knobs.num_pseudo_inputs:
            self.pseudo_inputs = nn.Parameter(torch.randn(knobs.num_pseudo_inputs, *image_shape))
        self.mixture = Mixture(knobs.num_components, self.latent_dim) if knobs.num_components else None

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
            z = torch.cat([z, nn.functional.one_hot(self._known(labels), self.num_labels).to(z.dtype)], dim=1)
        decoded: Tensor = self.decoder(z)
        if self.output == "global-scale":
            decoded = torch.cat([decoded, self.log_sigma.to(decoded.dtype).expand_as(decoded)], dim=1)
        return decoded

    def from_prior(self, noise: Tensor) -> Tensor:
        """Latents (B, latent_dim) that are distributed as the prior, or what was fitted, where `noise` is normal."""
        if self.mixture is not None:
            return self.mixture(noise)  # type: ignore[no-any-return]
        if self.pseudo_inputs is None:
            return noise
        mu, logvar = self.encode(torch.tanh(self.pseudo_inputs))
        even = torch.full((len(mu),), 1 / len(mu), device=mu.device)
        place, noise = choose(noise, even)
        return mu[place] + noise * torch.exp(0.5 * logvar[place])

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean images (B, C, H, W) in [-1, 1] of normal numbers (B, latent_dim), and labels if conditional."""
        return self._means(self.decode(self.from_prior(z), labels))

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as they come back through the middle of their posterior."""
        mu, logvar, context = self._posterior(images, labels)
        z, _ = self._draw(mu, logvar, context, torch.zeros_like(mu).unsqueeze(1))
        return self._means(self.decode(z.squeeze(1), labels))

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
            plane = self.label_plane(self._known(labels)).view(len(images), 1, *images.shape[2:])
            images = torch.cat([images, plane.to(images.dtype)], dim=1)
        mu, logvar, *context = self.encoder(images).float().split(self.latent_dim, dim=1)
        return mu, logvar.clamp(*LOGVAR_RANGE), context[0] if context else None

    def _draw(self, mu: Tensor, logvar: Tensor, context: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, K, latent_dim) of noise (B, K, latent_dim), and their log density (B, K)."""
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
        deviations = (z.unsqueeze(2) - mu) * torch.exp(-0.5 * logvar)  # (B, K, number of pseudo-inputs, latent_dim)
        each = normal_log_density(deviations) - 0.5 * logvar.sum(dim=1)
        return torch.logsumexp(each, dim=2) - math.log(len(mu))

    def _means(self, decoded: Tensor) -> Tensor:
        decoded = decoded.float()
        if self.output == "logistic-mixture":
            weights, means, _ = mixture_parts(decoded)
            return (weights.softmax(dim=1).unsqueeze(2) * means).sum(dim=1).clamp(-1, 1)
        logits = decoded if self.output == "logits" else decoded.chunk(2, dim=1)[0]
        return 2 * torch.sigmoid(logits) - 1

    def _known(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError(f"labels=None for a conditional VAE, expected (B,) of 0 to {self.num_labels - 1}")
        return labels


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


def num_outputs(output: Output, channels: int) -> int:
    """Channels that a decoder ends in, for images of `channels`."""
    return {
        "logits": channels,
        "global-scale": channels,
        "scale": 2 * channels,
        "logistic-mixture": NUM_LOGISTICS * (1 + 2 * channels),
    }[output]


def mixture_parts(decoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights before the softmax (B, K, H, W), means on [-1, 1], log scales, each (B, K, C, H, W), of K logistics."""
    weights, rest = decoded[:, :NUM_LOGISTICS], decoded[:, NUM_LOGISTICS:]
    means, log_scales = rest.view(len(rest), 2, NUM_LOGISTICS, -1, *rest.shape[2:]).unbind(dim=1)
    return weights, means, log_scales


def normal_log_density(z: Tensor) -> Tensor:
    """Log density of a standard normal distribution, in nats, over the last dimension of `z`."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)


def _conv_encoder(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> nn.Module:
    widths = [image_shape[0], *_widths(knobs, image_shape)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=knobs.norm == "none"), *_norm_relu(knobs.norm, after)]
    height, width = _base(image_shape)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, knobs.encoder_dim))


def _conv_decoder(knobs: ConvVAE, image_shape: tuple[int, int, int], dim: int) -> nn.Module:
    widths = _widths(knobs, image_shape)[::-1]
    base = (widths[0], *_base(image_shape))
    layers: list[nn.Module] = [nn.Linear(dim, base[0] * base[1] * base[2]), nn.Unflatten(1, base)]
    layers += _norm_relu(knobs.norm, widths[0])
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=knobs.norm == "none")]
        layers += _norm_relu(knobs.norm, after)
    last = num_outputs(knobs.output, image_shape[0])
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], last, 4, 2, 1))


def _dense(sizes: list[int]) -> list[nn.Module]:
    """Linear layers through these sizes with ReLU in between."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def _norm_relu(kind: str, channels: int) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm2d(channels)] if kind == "batch" else []
    return [*norm, nn.ReLU(inplace=True)]


def _num_doublings(image_shape: tuple[int, int, int]) -> int:
    """Levels between the base and the image."""
    _, height, width = image_shape
    doublings = max(0, (min(height, width) // 4).bit_length() - 1)
    step = 2**doublings
    if doublings == 0:
        problem, use = "each side must be at least 8", (max(height // 2 * 2, 8), max(width // 2 * 2, 8))
    else:
        problem = "the smaller side must be 4 to 7 times a power of two, and the other a multiple of that power"
        use = (height // step * step, width // step * step)
    if doublings == 0 or height % step or width % step:
        raise ValueError(
            f"model conv-vae cannot make images of {height} x {width} pixels: {problem}; "
            f"set data.image_size, e.g. to {use[0]} {use[1]}, or choose model mlp-vae"
        )
    return doublings


def _base(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the smallest map."""
    step = 2 ** _num_doublings(image_shape)
    return image_shape[1] // step, image_shape[2] // step


def _widths(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> list[int]:
    """Channels of each level, from the image inwards."""
    return [min(knobs.max_width, knobs.width * 2**level) for level in range(_num_doublings(image_shape))]


def _at_least(least: int, knobs: Latents, *names: str) -> None:
    for name in names:
        if getattr(knobs, name) < least:
            raise ValueError(f"model.{name}={getattr(knobs, name)!r} must be at least {least}")

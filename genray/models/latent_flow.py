"""A flow from noise to the continuous latents of a KL autoencoder, which with its decoder makes images.

Straight paths from noise to data: Lipman et al. 2023, arXiv:2210.02747, and Liu et al. 2023, arXiv:2209.03003; in the
latents of an autoencoder: Rombach et al. 2022, arXiv:2112.10752; transformer whose norms are told the time and the
label: Peebles and Xie 2023, arXiv:2212.09748.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genray.models.knobs import at_least, check_heads, given, num_labels
from genray.models.tokenizer import Tokenizer, TokenizerNetwork, with_buffers_alone

NUM_FREQUENCIES, MOST_FREQUENCY = 32, 1000.0
"""Waves by which a time in [0, 1] is told, and the angular frequency of the fastest."""


@dataclass(frozen=True, kw_only=True)
class LatentFlow(Tokenizer):
    """A KL autoencoder that was trained before, of these very knobs, at rest, and a transformer over its latents."""

    modules: ClassVar[tuple[str, ...]] = ("generator",)
    draws: ClassVar[str] = "latents"
    needs_source: ClassVar[bool] = True
    """Whether a run makes no sense without `transfer.source`."""

    quantizer: Literal["vq", "fsq", "none"] = "none"
    """none: the tokenizer has continuous latents; a flow has no use for codes."""
    transformer_width: int = 128
    """Numbers of a place in the transformer."""
    num_layers: int = 4
    """Layers of the transformer, attention and two dense ones each."""
    num_heads: int = 4
    """Heads of its attention."""
    num_flow_steps: int = 8
    """Steps from noise to latents, each of two passes of the transformer (Heun's method)."""
    conditional: bool = False
    """The transformer is told the label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "transformer_width", "num_layers", "num_heads", "num_flow_steps")
        if self.quantizer != "none":
            raise ValueError(
                f"model.quantizer={self.quantizer!r} makes codes, and a flow draws continuous latents; start from a "
                "tokenizer of quantizer none, or choose model code-transformer"
            )
        check_heads(self.transformer_width, self.num_heads)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `generator` of images (C, H, W); its tokenizer is to be taken from one that was trained.

        Raises:
            ValueError: a size that cannot be halved as often, or labels of fewer than two classes.
        """
        labels = num_labels(self.conditional, num_classes)
        tokenizer: TokenizerNetwork = super().build(image_shape, num_classes)["tokenizer"]  # type: ignore[assignment]
        return {"generator": LatentGenerator(tokenizer, self, labels)}


class LatentGenerator(nn.Module):
    """Noise moved along a flow to latents, which are decoded.

    Encoder, quantiser and decoder have buffers in place of parameters: nothing trains them.
    """

    def __init__(self, tokenizer: TokenizerNetwork, knobs: LatentFlow, num_labels: int) -> None:
        super().__init__()
        self.encoder = with_buffers_alone(tokenizer.encoder)
        self.quantizer = with_buffers_alone(tokenizer.quantizer)
        self.decoder = with_buffers_alone(tokenizer.decoder)
        self.latent_shape, self.num_labels = tokenizer.latent_shape, num_labels
        self.latent_dim, self.num_flow_steps = math.prod(self.latent_shape), knobs.num_flow_steps
        self.transformer = VelocityTransformer(knobs, self.latent_shape, num_labels)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The tokenizer, and the transformer over its latents."""
        return (self.encoder, self.quantizer, self.decoder), (self.transformer,)

    @torch.no_grad()
    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, D, h, w) of images (B, C, H, W) in [-1, 1], of mean 0 and deviation 1 over those of training.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, D, h, w), standard normal, with which they are drawn from their posteriors.
        """
        drawn = self.quantizer(self.encoder(images).float(), noise)[0]
        scaled: Tensor = self.quantizer.scaled(drawn)  # type: ignore[operator]
        return scaled

    def forward(self, points: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """Velocity (B, D, h, w) of points on their way from noise to latents.

        Args:
            points: (B, D, h, w).
            times: (B,), from 0, noise, to 1, latents.
            labels: (B,), int64, if conditional.
        """
        velocity: Tensor = self.transformer(points, times, labels)
        return velocity

    def flow(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (B, D, h, w) that standard normal `noise` (B, D, h, w) is moved to."""
        points, step = noise, 1 / self.num_flow_steps
        for index in range(self.num_flow_steps):
            before, after = (points.new_full((len(points),), at * step) for at in (index, index + 1))
            velocity = self(points, before, labels)
            ahead = self(points + step * velocity, after, labels)
            points = points + step * (velocity + ahead) / 2
        return points

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of normal numbers (B, latent_dim), and labels if conditional."""
        latents = self.flow(z.view(-1, *self.latent_shape), labels)
        logits = self.decoder(self.quantizer.values(latents))  # type: ignore[operator]
        return 2 * torch.sigmoid(logits.float()) - 1


class VelocityTransformer(nn.Module):
    """A token for each place of a map; whatever a layer does is scaled, moved and gated by the time and the label."""

    def __init__(self, knobs: LatentFlow, latent_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        width = knobs.transformer_width
        dim, self.num_labels = latent_shape[0], num_labels
        self.embed = nn.Linear(dim, width)
        self.place = nn.Parameter(0.02 * torch.randn(math.prod(latent_shape[1:]), width))
        self.tell_time = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        if num_labels:
            self.tell_label = nn.Embedding(num_labels, width)
            nn.init.normal_(self.tell_label.weight, std=0.02)
        self.layers = nn.ModuleList(ToldLayer(width, knobs.num_heads) for _ in range(knobs.num_layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.told = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, dim)
        # at first every layer is the identity, and the velocity 0
        for layer in (self.told, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """Velocity (B, D, h, w) of points (B, D, h, w) at times (B,) in [0, 1], of labels (B,) if there are any."""
        told = self.tell_time(waves(times))
        if self.num_labels:
            told = told + self.tell_label(given(labels, self.num_labels))
        told = nn.functional.silu(told).unsqueeze(1)
        x = self.embed(points.flatten(2).transpose(1, 2)) + self.place
        for layer in self.layers:
            x = layer(x, told)
        scale, shift = self.told(told).chunk(2, dim=2)
        velocity: Tensor = self.head(self.norm(x) * (1 + scale) + shift)
        return velocity.transpose(1, 2).reshape(points.shape)


class ToldLayer(nn.Module):
    """Attention of all places to all, then two dense layers, each beside a shortcut; the identity at first."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.before_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.before_dense = nn.LayerNorm(width, elementwise_affine=False)
        self.attention, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.told = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """The tokens (B, L, D), changed, by what they are told, (B, 1, D)."""
        scale, shift, gate, dense_scale, dense_shift, dense_gate = self.told(told).chunk(6, dim=2)
        parts = self.attention(self.before_attention(x) * (1 + scale) + shift).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + gate * self.mix(attended.transpose(1, 2).flatten(2))
        changed: Tensor = x + dense_gate * self.dense(self.before_dense(x) * (1 + dense_scale) + dense_shift)
        return changed


def waves(times: Tensor) -> Tensor:
    """Cosines and sines (B, 2 * NUM_FREQUENCIES) of times (B,) in [0, 1], from slow to fast."""
    exponents = torch.linspace(0, 1, NUM_FREQUENCIES, device=times.device)
    angles = times.float().unsqueeze(1) * MOST_FREQUENCY**exponents
    return torch.cat([angles.cos(), angles.sin()], dim=1)

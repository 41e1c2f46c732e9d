"""An autoregressive transformer over the codes of a tokenizer, which with its decoder makes images.

Causal transformer: Vaswani et al. 2017, arXiv:1706.03762, normalised before each layer (Xiong et al. 2020,
arXiv:2002.04745); over codes of images in raster order: Esser et al. 2021, arXiv:2012.09841.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from genray.models.knobs import at_least, check_heads, given, num_labels
from genray.models.tokenizer import Tokenizer, TokenizerNetwork, with_buffers_alone

Past = tuple[Tensor, Tensor]
"""Keys and values of the tokens so far, each (B, heads, L, D / heads)."""


@dataclass(frozen=True, kw_only=True)
class CodeTransformer(Tokenizer):
    """A tokenizer that was trained before, of these very knobs, at rest, and a transformer over its codes."""

    modules: ClassVar[tuple[str, ...]] = ("generator",)
    draws: ClassVar[str] = "codes"
    needs_source: ClassVar[bool] = True
    """Whether a run makes no sense without `transfer.source`."""

    transformer_width: int = 128
    """Numbers of a token in the transformer."""
    num_layers: int = 4
    """Layers of the transformer, attention and two dense ones each."""
    num_heads: int = 4
    """Heads of its attention."""
    conditional: bool = False
    """The transformer is told the label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "transformer_width", "num_layers", "num_heads")
        if self.quantizer == "none":
            raise ValueError(
                "model.quantizer='none' makes continuous latents, and a transformer draws codes; start from a "
                "tokenizer of quantizer vq or fsq, or choose model latent-flow"
            )
        check_heads(self.transformer_width, self.num_heads)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `generator` of images (C, H, W); its tokenizer is to be taken from one that was trained.

        Raises:
            ValueError: a size that cannot be halved as often, or labels of fewer than two classes.
        """
        labels = num_labels(self.conditional, num_classes)
        step = 2**self.num_downsamplings
        tokenizer: TokenizerNetwork = super().build(image_shape, num_classes)["tokenizer"]  # type: ignore[assignment]
        return {"generator": CodeGenerator(tokenizer, self, (image_shape[1] // step, image_shape[2] // step), labels)}


class CodeGenerator(nn.Module):
    """Codes drawn one after the other in raster order, and decoded.

    Encoder, quantiser and decoder have buffers in place of parameters: nothing trains them.
    """

    def __init__(
        self, tokenizer: TokenizerNetwork, knobs: CodeTransformer, sides: tuple[int, int], num_labels: int
    ) -> None:
        super().__init__()
        self.encoder = with_buffers_alone(tokenizer.encoder)
        self.quantizer = with_buffers_alone(tokenizer.quantizer)
        self.decoder = with_buffers_alone(tokenizer.decoder)
        self.sides, self.num_labels, self.latent_dim = sides, num_labels, math.prod(sides)
        self.num_codes = int(tokenizer.quantizer.num_codes)  # type: ignore[arg-type]
        self.transformer = Transformer(knobs, self.num_codes, self.latent_dim, num_labels)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The tokenizer, and the transformer over its codes."""
        return (self.encoder, self.quantizer, self.decoder), (self.transformer,)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Codes (B, L) of images (B, C, H, W) in [-1, 1], in raster order, int64."""
        codes: Tensor = self.quantizer(self.encoder(images).float())[1]
        return codes.flatten(1)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of every code, given those before it.

        Args:
            codes: (B, L), int64.
            labels: (B,), int64, if conditional.
        """
        logits: Tensor = self.transformer(codes, labels)
        return logits

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of normal numbers (B, L), one for each code; nearer to 0: likelier codes."""
        codes = self.transformer.draw(z, labels)
        logits = self.decoder(self.quantizer.values(codes.view(-1, *self.sides)))  # type: ignore[operator]
        return 2 * torch.sigmoid(logits.float()) - 1


class Transformer(nn.Module):
    """Distributions of codes given those before them, and the label."""

    def __init__(self, knobs: CodeTransformer, num_codes: int, num_places: int, num_labels: int) -> None:
        super().__init__()
        width = knobs.transformer_width
        self.num_places, self.num_labels = num_places, num_labels
        self.begin = nn.Embedding(max(1, num_labels), width)
        self.embed = nn.Embedding(num_codes, width)
        self.place = nn.Parameter(0.02 * torch.randn(num_places, width))
        self.layers = nn.ModuleList(TransformerLayer(width, knobs.num_heads) for _ in range(knobs.num_layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_codes))
        for embedding in (self.begin, self.embed):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of codes (B, L), each given those before it, and labels (B,) if there are any."""
        x = torch.cat([self._begin(len(codes), labels), self.embed(codes[:, :-1])], dim=1) + self.place
        for layer in self.layers:
            x, _ = layer(x, None)
        logits: Tensor = self.head(x)
        return logits

    def draw(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Codes (B, L), int64, distributed as the transformer says where `noise` (B, L) is standard normal."""
        token, past, codes = self._begin(len(noise), labels), [None] * len(self.layers), []
        for index in range(self.num_places):
            x = token + self.place[index]
            for number, layer in enumerate(self.layers):
                x, past[number] = layer(x, past[number])
            codes.append(likeliest_first(self.head(x)[:, 0], noise[:, index]))
            token = self.embed(codes[-1]).unsqueeze(1)
        return torch.stack(codes, dim=1)

    def _begin(self, num: int, labels: Tensor | None) -> Tensor:
        """What stands before the first code, (B, 1, D)."""
        if self.num_labels:
            begin: Tensor = self.begin(given(labels, self.num_labels).unsqueeze(1))
            return begin
        return self.begin.weight.unsqueeze(0).expand(num, -1, -1)


class TransformerLayer(nn.Module):
    """Attention to oneself and what was before, then two dense layers, each beside a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.before_attention, self.before_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """The tokens (B, L, D), changed, and keys and values up to them.

        Args:
            x: (B, L, D); one token where there is a past.
            past: of the tokens before. None: these are the first.
        """
        parts = self.attention(self.before_attention(x)).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.mix(attended.transpose(1, 2).flatten(2))
        return x + self.dense(self.before_dense(x)), (key, value)


def likeliest_first(logits: Tensor, noise: Tensor) -> Tensor:
    """Codes (B,) drawn by standard normal numbers (B,) from the distributions that logits (B, V) say.

    The share of normal numbers that are nearer to 0 is uniform, and counts through the codes from the likeliest on:
    noise made smaller, as by truncation, draws likelier ones, and 0 the likeliest.
    """
    probabilities, codes = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    ends = probabilities.cumsum(dim=1)
    nearer = torch.special.erf(noise.double().abs() / math.sqrt(2)).unsqueeze(1) * ends[:, -1:]
    place = torch.searchsorted(ends, nearer, right=True).clamp(max=logits.shape[1] - 1)
    return codes.gather(1, place).squeeze(1)

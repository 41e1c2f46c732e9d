"""Snapshot and seed in, images out.

The rule is short enough to be written again in a registered model that opens without genray:
`z = randn(num, latent_dim)` from a CPU generator at `seed`; the truncation a factor on z, or, where
the model has a `mean_style`, on the way from it to each style; labels 0, 1, 2, … in turn; eval mode;
batches in order; `round((x + 1) * 127.5)`.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from genray.errors import ConfigError, DivergenceError
from genray.manifest import written_whole

if TYPE_CHECKING:
    from genray.snapshot import Snapshot

MIN_TILE = 32
"""Pixels that the shorter side of an image in a grid has at least."""
PADDING = 2
"""White pixels around every image of a grid."""


def sample(
    snapshot: "Snapshot",
    num: int,
    seed: int,
    *,
    label: int | None = None,
    truncation: float = 1.0,
    batch_size: int = 256,
) -> Tensor:
    """`num` images of a generator or a VAE, uint8 (num, C, H, W), on the CPU.

    Equal arguments give equal images, bit for bit on one kind of CPU. Another `num` or
    `batch_size` may move a pixel by one grey level, and another `num` the last image or two.

    Args:
        snapshot: with the product `generator` or `vae`.
        num: images, at least 1.
        seed: of the latents, at least 0.
        label: class of every image. None: all classes in turn, where the model has any.
        truncation: factor on the latents, or on the styles around their mean, at least 0; below 1 trades
            diversity for quality.
        batch_size: images per forward pass.

    Raises:
        ConfigError: the snapshot makes no images, or an argument is out of range.
        DivergenceError: the model gives non-finite pixels.
    """
    check_makes_images(snapshot, num, seed, truncation)
    module: Any = snapshot.module
    labels = labels_for(num, int(module.num_labels), label, snapshot.classes)
    return generate(module, latents(num, int(module.latent_dim), seed), labels, batch_size, truncation=truncation)


def check_makes_images(snapshot: "Snapshot", num: int, seed: int, truncation: float) -> None:
    """Refuses what draws no images, and arguments of `sample` that are out of range.

    Raises:
        ConfigError: says which, and what to do.
    """
    if snapshot.product in ("classifier", "tokenizer"):
        what = {
            "classifier": "makes no images; use a generator's",
            "tokenizer": "has no distribution to draw from; train a code-transformer on its codes, or a latent-flow "
            "on its continuous latents",
        }[snapshot.product]
        raise ConfigError(f"snapshot of {snapshot.task!r} is a {snapshot.product}, which {what}")
    check_range("num", num, 1)
    check_range("seed", seed, 0)
    check_range("truncation", truncation, 0)


def latents(num: int, latent_dim: int, seed: int) -> Tensor:
    """Standard normal numbers, (num, latent_dim), equal on every device."""
    return torch.randn(num, latent_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def generate(
    module: nn.Module, z: Tensor, labels: Tensor | None, batch_size: int = 256, *, truncation: float = 1.0
) -> Tensor:
    """Images of the given latents, uint8 (N, C, H, W), on the CPU.

    Args:
        module: a generator or VAE, on any device; is in eval mode afterwards.
        z: (N, latent_dim).
        labels: (N,), int64, or None for an unconditional model.
        batch_size: images per forward pass, at least 1.
        truncation: factor on the latents, or on the styles around their mean.

    Raises:
        ConfigError: `batch_size` is below 1.
        DivergenceError: the model gives non-finite pixels.
    """
    check_range("batch_size", batch_size, 1)
    model: Any = module.eval()
    device = next(module.parameters()).device
    of_styles = {"truncation": truncation} if hasattr(module, "mean_style") else {}
    z = z if of_styles else z * truncation
    images = []
    for start in range(0, len(z), batch_size):
        part = slice(start, start + batch_size)
        own = None if labels is None else labels[part].to(device)
        images.append(to_uint8(model.generate(z[part].to(device), own, **of_styles)).cpu())
    return torch.cat(images)


@torch.no_grad()
def reconstruct(module: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Images as an autoencoder gives them back, uint8 (N, C, H, W), on the CPU: one forward pass.

    Args:
        module: a VAE or a tokenizer, on any device; is in eval mode afterwards.
        images: uint8 (N, C, H, W).
        labels: (N,); read if the model is conditional.

    Raises:
        DivergenceError: the model gives non-finite pixels.
    """
    model: Any = module.eval()
    device = next(module.parameters()).device
    own = labels.to(device) if model.num_labels and labels is not None else None
    return to_uint8(model.reconstruct(to_float(images.to(device)), own)).cpu()


def beside(images: Tensor, others: Tensor) -> Tensor:
    """Images (N, ...) and others (N, ...) in turn, (2N, ...): each pair side by side in a grid of even columns."""
    return torch.stack([images, others], dim=1).flatten(0, 1)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 of the same shape; values beyond the range are cut off.

    Raises:
        DivergenceError: a pixel is not finite.
    """
    if not bool(images.isfinite().all()):
        bad = int((~images.isfinite()).flatten(1).any(1).sum())
        raise DivergenceError(
            f"{bad} of {len(images)} generated images have non-finite pixels, expected values in [-1, 1]; "
            "the weights have diverged, take an earlier snapshot"
        )
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Images of uint8 in [-1, 1], float32 of the same shape: the inverse of `to_uint8`."""
    return images.float() / 127.5 - 1


def grid(images: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
    """One picture of all images, row by row on white, uint8 (H', W', 3).

    Small images are enlarged by a whole factor until their shorter side has 32 pixels.

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3, N at least 1.
        columns: images in a row. None: nearly a square.

    Raises:
        ConfigError: the images are of another shape or type, or `columns` is below 1.
    """
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ConfigError(
            f"grid takes uint8 images (N, C, H, W) with N >= 1 and C = 1 or 3, got {images.dtype} {tuple(images.shape)}"
        )
    num, _, height, width = images.shape
    columns = math.ceil(math.sqrt(num)) if columns is None else columns
    check_range("columns", columns, 1)
    rows = math.ceil(num / columns)
    factor = math.ceil(MIN_TILE / min(height, width))
    tiles = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    step_h, step_w = height * factor + PADDING, width * factor + PADDING
    canvas = np.full((rows * step_h + PADDING, columns * step_w + PADDING, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * step_h + PADDING, index % columns * step_w + PADDING
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes `pixels`, uint8 (H, W, 3), as PNG; a reader sees the old file or the whole new one."""
    with written_whole(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")


def labels_for(num: int, num_labels: int, label: int | None, classes: tuple[str, ...]) -> Tensor | None:
    """Labels (num,) of samples: all of `label`, or all classes in turn; None for an unconditional model.

    Raises:
        ConfigError: there is no such class.
    """
    if num_labels == 0:
        if label is not None:
            raise ConfigError(f"label={label!r} was asked for, but the model is unconditional; leave the label out")
        return None
    if label is None:
        return torch.arange(num) % num_labels
    if not 0 <= label < num_labels:
        names = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
        raise ConfigError(f"label={label!r} must lie between 0 and {num_labels - 1}, the places of: {names}")
    return torch.full((num,), label)


def check_range(name: str, value: float, least: float) -> None:
    """Raises ConfigError where the argument `name` is below `least`, or larger than 64 bits have it."""
    if not least <= value < 2**63:
        raise ConfigError(f"{name}={value!r} must be at least {least}" + (" and below 2**63" if value > least else ""))

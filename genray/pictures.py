"""Pictures of what a snapshot has learned, and of how a run learned it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from genray.data.images import ImageSet
from genray.errors import ConfigError
from genray.evaluation import card
from genray.evaluation.features import check_shape
from genray.evaluation.latent import has_posterior, latents_of, reconstructions
from genray.manifest import written_whole
from genray.models.pixel_distributions import mean_images
from genray.models.vae import VAE
from genray.objectives.regularisers import gaussian_kl
from genray.sampling import (
    beside,
    check_makes_images,
    check_range,
    generate,
    grid,
    labels_for,
    latents,
    sample,
    to_float,
    to_uint8,
)
from genray.snapshot import Snapshot

COLUMNS = 10
"""Images in a row of an interpolation."""
ROWS = 4
"""Rows of the pictures that a run draws of its snapshots."""
PAIRS = 4
"""Images in a row of reconstructions, each with its own beside it."""
BATCH = 256
"""Images per forward pass of an encoder."""
TRUNCATIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Columns of a truncation sweep."""
FRAME_MS = 400
"""Milliseconds that a time-lapse shows a grid; its last one four times as long."""
FILM = "time-lapse.gif"
"""A time-lapse among the files of a run in MLflow."""
GRIDS = "journal/train/samples/fixed_z"
"""Where a run keeps the grids of its fixed latents, by step."""

Picture = tuple[Tensor, int | None]
"""Images, uint8 (N, C, H, W), row by row, and the images in a row; None: nearly a square."""


def grid_of_samples(model: Snapshot, num: int, seed: int, label: int | None, truncation: float) -> Picture:
    """`num` samples; of all classes in turn, a column a class."""
    images = sample(model, num, seed, label=label, truncation=truncation)
    in_turn = _num_labels(model) if label is None else 0
    return images, in_turn if 0 < in_turn <= num else None


def interpolation(model: Snapshot, num: int, seed: int, label: int | None, truncation: float) -> Picture:
    """Each row goes from one latent to another, along the arc between them; one class a row."""
    ends = latents(2 * num, _latent_dim(model), seed).view(num, 2, -1)
    shares = torch.linspace(0, 1, COLUMNS)
    z = torch.stack([slerp(a, b, share) for a, b in ends for share in shares])
    labels = labels_for(num, _num_labels(model), label, model.classes)
    labels = None if labels is None else labels.repeat_interleave(COLUMNS)
    return generate(model.module, z, labels, truncation=truncation), COLUMNS


def class_sweep(model: Snapshot, num: int, seed: int, label: int | None, truncation: float) -> Picture:
    """Each row is one latent, each column a class; `label` is not read.

    Raises:
        ConfigError: the model is unconditional.
    """
    num_labels = _num_labels(model)
    if not num_labels:
        raise ConfigError(f"--kind=classes: the model of {model.task!r} is unconditional; use --kind grid")
    z = latents(num, _latent_dim(model), seed).repeat_interleave(num_labels, dim=0)
    labels = torch.arange(num_labels).repeat(num)
    return generate(model.module, z, labels, truncation=truncation), num_labels


def truncation_sweep(model: Snapshot, num: int, seed: int, label: int | None, truncation: float) -> Picture:
    """Each row is one latent, each column a truncation from 0 to 1.25, times `truncation`; one class a row."""
    z = latents(num, _latent_dim(model), seed)
    labels = labels_for(num, _num_labels(model), label, model.classes)
    columns = [generate(model.module, z, labels, truncation=factor * truncation) for factor in TRUNCATIONS]
    return torch.stack(columns, dim=1).flatten(0, 1), len(TRUNCATIONS)


@torch.no_grad()
def style_mixing(model: Snapshot, num: int, seed: int, label: int | None, truncation: float) -> Picture:
    """Each image has the first half of its styles from the image left of its row, the rest from that above its column.

    Raises:
        ConfigError: the model has no styles.
    """
    module: Any = model.module
    if not hasattr(module, "synthesise"):
        raise ConfigError(f"--kind=styles: the model of {model.task!r} has no styles; use a stylegan2's")
    z = latents(2 * num, _latent_dim(model), seed)
    styles = module.eval().styles(z, labels_for(2 * num, _num_labels(model), label, model.classes), truncation)
    of_rows, of_columns = styles[:, None].expand(-1, module.num_styles, -1).chunk(2)
    first = module.num_styles // 2
    mixed = torch.cat(
        [
            of_rows[:, None, :first].expand(-1, num, -1, -1),
            of_columns[None, :, first:].expand(num, -1, -1, -1),
        ],
        dim=2,
    )
    left, above, inside = (to_uint8(module.synthesise(w)) for w in (of_rows, of_columns, mixed.flatten(0, 1)))
    blank = torch.full_like(left[:1], 255)
    rows = [torch.cat([left[i : i + 1], inside[i * num : (i + 1) * num]]) for i in range(num)]
    return torch.cat([blank, above, *rows]), num + 1


def reconstruction_pairs(model: Snapshot, images: ImageSet, num: int, seed: int) -> Picture:
    """Pairs of an image, left, and what comes back of it; `seed` picks the images.

    Raises:
        ConfigError: the model is no autoencoder.
    """
    places = _picked(images, num, seed)
    own = images.images[places]
    back = torch.cat(list(reconstructions(model, own, labels=images.labels[places])))
    return beside(own, back), 2 * min(PAIRS, len(places))


@torch.no_grad()
def latent_traversals(model: Snapshot, images: ImageSet, num: int, seed: int) -> Picture:
    """Each row is one image, of which one dimension of the latent goes through 3 deviations either way.

    The `num` dimensions that say most of the images come first: those of the greatest divergence from the prior
    where the posterior is normal, otherwise those that scatter most. `seed` picks the image; mean and deviation of
    a dimension are those of the latents of all `images`.

    Raises:
        ConfigError: the model has no vector of latents.
    """
    module: Any = model.module.eval()
    if not isinstance(module, VAE):
        raise ConfigError(
            f"--kind=traversals: the model of {model.task!r} is a {model.product} without one vector of latents that "
            "an encoder gives; use a VAE's"
        )
    check_shape(model.product, model, images.images)
    points = latents_of(model, images.images, images.labels, seed)
    place = _picked(images, 1, seed)
    label = images.labels[place] if module.num_labels else None
    no_noise = torch.zeros(1, points.shape[1])
    start = module(to_float(images.images[place]), no_noise, label).z
    rows = []
    for dim in _most_telling(model, images, points)[:num].tolist():
        z = start.repeat(COLUMNS + 1, 1)
        z[:, dim] = points[:, dim].mean() + points[:, dim].std() * torch.linspace(-3, 3, COLUMNS + 1)
        own = None if label is None else label.expand(len(z))
        rows.append(to_uint8(mean_images(module.decode(z, own), module.output)))
    return torch.cat(rows), COLUMNS + 1


def _most_telling(model: Snapshot, images: ImageSet, points: Tensor) -> Tensor:
    """Dimensions of the latent (D,), the one that says most of the images first; `points` (N, D) are theirs."""
    module: Any = model.module
    if not (module.closed_kl and has_posterior(model)):
        return points.var(0).argsort(descending=True)
    total = torch.zeros(points.shape[1], dtype=torch.float64)
    for part, labels in zip(torch.split(images.images, BATCH), torch.split(images.labels, BATCH), strict=True):
        mu, logvar = module.encode(to_float(part), labels if module.num_labels else None)
        total += gaussian_kl(mu.double(), logvar.double()).sum(0)
    return total.argsort(descending=True)


def _picked(images: ImageSet, num: int, seed: int) -> Tensor:
    """Places of `num` of the images, or of all where they are fewer."""
    return torch.randperm(len(images.images), generator=torch.Generator().manual_seed(seed))[:num]


OF_IMAGES: dict[str, Callable[[Snapshot, ImageSet, int, int], Picture]] = {
    "reconstructions": reconstruction_pairs,
    "traversals": latent_traversals,
}
"""Pictures that need real images."""


def draw_of(kind: str, model: Snapshot, images: ImageSet, num: int, seed: int) -> Picture:
    """A picture of `OF_IMAGES`.

    Args:
        kind: its name.
        model: a VAE, a regularised autoencoder, or a tokenizer.
        images: of the shape that it was trained on.
        num: pairs or rows, at least 1.
        seed: of the choice of images, at least 0.

    Raises:
        ConfigError: the model cannot make such a picture, or an argument is out of range.
        ProtocolError: the images have another shape.
    """
    check_range("num", num, 1)
    check_range("seed", seed, 0)
    return OF_IMAGES[kind](model, images, num, seed)


KINDS: dict[str, Callable[[Snapshot, int, int, int | None, float], Picture]] = {
    "grid": grid_of_samples,
    "interpolation": interpolation,
    "classes": class_sweep,
    "truncation": truncation_sweep,
    "styles": style_mixing,
}


def draw(kind: str, model: Snapshot, num: int, seed: int, label: int | None, truncation: float) -> Picture:
    """A picture of `KINDS`.

    Args:
        kind: its name.
        model: a generator or a VAE.
        num: images of a grid, rows of the others, at least 1.
        seed: of the latents, at least 0.
        label: class of every image. None: all in turn.
        truncation: at least 0; below 1 trades diversity for quality.

    Raises:
        ConfigError: the model cannot make such a picture, or an argument is out of range.
    """
    check_makes_images(model, num, seed, truncation)
    return KINDS[kind](model, num, seed, label, truncation)


def drawn(
    kinds: Iterable[str], model: Snapshot, images: ImageSet, nearest: Callable[[Tensor], NDArray[np.uint8]] | None
) -> dict[str, NDArray[np.uint8]]:
    """Those of `kinds` that the model can make, (H, W, 3), by name.

    Args:
        kinds: names in `KINDS` or `OF_IMAGES`, or `nearest`.
        model: of any product; a classifier can make none.
        images: of the shape that it was trained on.
        nearest: makes the picture of samples, uint8 (N, C, H, W), beside real images; None: nothing can.
    """
    made = {}
    for kind in kinds:
        try:
            if kind in OF_IMAGES:
                made[kind] = grid(*draw_of(kind, model, images, ROWS, seed=0))
            elif kind in KINDS:
                made[kind] = grid(*draw(kind, model, ROWS, seed=0, label=None, truncation=1.0))
            elif nearest is not None:
                made[kind] = nearest(sample(model, card.NUM_SAMPLES, seed=0))
        except ConfigError:
            continue
    return made


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """The point at `share` of the arc between two vectors (D,): as long as normal vectors are, all the way.

    Shoemake 1985; vectors in one direction are joined by a line.
    """
    cosine = torch.cosine_similarity(start, end, dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if torch.sin(angle) < 1e-4:
        return torch.lerp(start, end, torch.as_tensor(share))
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


def time_lapse(run: Path, out: Path) -> int:
    """Writes the grids of fixed latents of a run, in the order of its steps, as an animated GIF; how many they are.

    Args:
        run: folder of the run, e.g. runs/mnist-dcgan.
        out: GIF file; a reader sees the old one or the whole new one.

    Raises:
        ConfigError: the run has no grids.
    """
    paths = sorted((run / GRIDS).glob("*.png"))
    if not paths:
        raise ConfigError(
            f"{run / GRIDS} has no PNG files; give the folder of a run that was trained with train.sample_every above 0"
        )
    frames = [Image.open(path).convert("RGB") for path in paths]
    durations = [FRAME_MS] * (len(frames) - 1) + [4 * FRAME_MS]
    with written_whole(out) as beside:
        frames[0].save(beside, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return len(frames)


def _latent_dim(model: Snapshot) -> int:
    module: Any = model.module
    return int(module.latent_dim)


def _num_labels(model: Snapshot) -> int:
    module: Any = model.module
    return int(module.num_labels)

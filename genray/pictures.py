"""Pictures of what a snapshot has learned, and of how a run learned it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genray.errors import ConfigError
from genray.sampling import check_makes_images, generate, labels_for, latents, sample, to_uint8, written_whole
from genray.snapshot import Snapshot

COLUMNS = 10
"""Images in a row of an interpolation."""
TRUNCATIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Columns of a truncation sweep."""
FRAME_MS = 400
"""Milliseconds that a time-lapse shows a grid; its last one four times as long."""
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

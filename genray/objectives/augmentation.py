"""Differentiable augmentation of what the discriminator sees, reals and fakes alike, and a probability that adapts.

Zhao et al. 2020, arXiv:2006.10738 (the operations); Karras et al. 2020, arXiv:2006.06676 (the probability).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from genray import distributed

Operation = Literal["color", "translation", "cutout"]
NUM_DRAWS = 10
"""Numbers that one image takes, whatever the operations, so that those of one do not depend on the others."""
SHIFT = 1 / 8
"""Share of each side by which translation moves an image at most."""
HOLE = 1 / 2
"""Share of each side that cutout blanks."""
MOST = 0.8
"""Highest adaptive probability: above it, Karras et al. found, generators begin to draw augmented images."""


def augment(images: Tensor, draws: Tensor, operations: tuple[Operation, ...], probability: Tensor | float) -> Tensor:
    """Each image with each of `operations` done to it at `probability`, in their order, (B, C, H, W).

    Differentiable once in the images. Blank pixels are 0, the middle grey.

    Args:
        images: (B, C, H, W) in [-1, 1]; the results may leave that range.
        draws: (B, NUM_DRAWS) in [0, 1).
        operations: names of them.
        probability: in [0, 1]; a tensor () stays on its device.
    """
    gates, rest = draws[:, :3].unbind(1), draws[:, 3:]
    done = {
        "color": lambda x: jitter_color(x, rest[:, 0:3]),
        "translation": lambda x: translate(x, rest[:, 3:5]),
        "cutout": lambda x: cut_out(x, rest[:, 5:7]),
    }
    for gate, name in zip(gates, done, strict=True):
        if name in operations:
            images = torch.where((gate < probability)[:, None, None, None], done[name](images), images)
    return images


def jitter_color(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness moved by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5.

    Args:
        images: (B, C, H, W).
        draws: (B, 3) in [0, 1).
    """
    brightness, saturation, contrast = draws[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translate(images: Tensor, draws: Tensor) -> Tensor:
    """Images moved by a whole number of pixels, up to an eighth of each side, on blank ground.

    Args:
        images: (B, C, H, W).
        draws: (B, 2) in [0, 1): down and right.
    """
    rows, inside_rows = _sources(images.shape[2], draws[:, 0])
    columns, inside_columns = _sources(images.shape[3], draws[:, 1])
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # indexed dimensions come first: (B, H, W, C)
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def _sources(side: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel of a side comes from, (B, side), and whether that is in the image."""
    most = round(side * SHIFT)
    shifts = (draws * (2 * most + 1)).floor().long() - most
    places = torch.arange(side, device=draws.device) - shifts[:, None]
    return places.clamp(0, side - 1), (places >= 0) & (places < side)


def cut_out(images: Tensor, draws: Tensor) -> Tensor:
    """Images with a blank rectangle of half of each side, whose middle lies anywhere.

    Args:
        images: (B, C, H, W).
        draws: (B, 2) in [0, 1): down and right.
    """
    rows, columns = (_hole(side, draws[:, i]) for i, side in enumerate(images.shape[2:]))
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _hole(side: int, draws: Tensor) -> Tensor:
    """Which pixels of a side are blank, (B, side)."""
    size = max(1, round(side * HOLE))
    first = (draws * side).floor() - size // 2
    offset = torch.arange(side, device=draws.device) - first[:, None]
    return (offset >= 0) & (offset < size)


class AdaptiveProbability(nn.Module):
    """A probability that rises while the discriminator is too sure of the reals, and falls otherwise.

    It is a buffer: part of every checkpoint, equal on all ranks, and never read by the host.
    """

    probability: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("probability", torch.zeros(()))

    @torch.no_grad()
    def update(self, logits_reals: Tensor, target: float, step: float) -> None:
        """Moves the probability by `step`, up if the mean sign of the logits over all ranks is above `target`.

        Args:
            logits_reals: (B,) of this rank.
            target: in (0, 1); 0.6 in the paper.
            step: global batch size over the images that a way from 0 to 1 takes.
        """
        overfitting = distributed.mean(logits_reals.sign().mean())
        self.probability.add_((overfitting - target).sign() * step).clamp_(0, MOST)

"""Training images: a share of the real ones, and generated ones beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genray import streams
from genray.data import cache, generated
from genray.data.images import ImageSet, load_images
from genray.errors import ConfigError, DataError
from genray.evaluation.distances import nearest
from genray.fields import check_at_least

if TYPE_CHECKING:
    from genray.config import Data

SPARE = 2
"""Images that are generated for each that is taken, where some may be left out."""
NUM_MEASURED = 2000
"""Real images, drawn by `mix.seed`, whose distances to their nearest other are measured."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Which images a run trains on: drawn class by class with `seed`, the same on every worker."""

    real_fraction: float = 1.0
    """Share of the real training images of each class that is kept."""
    sources: tuple[str, ...] = ()
    """Folders that `genray generate` has made, of the same image shape and with the same names of classes; that an
    experiment has made in an object store, by URI."""
    ratio: float = 1.0
    """Generated images for each real one that is kept, in each class."""
    balance: bool = False
    """Fill each class up to the size of the largest with generated images instead; `ratio` is not read."""
    judge: str = ""
    """Snapshot folder of a classifier; generated images that it gives their class with less than `min_confidence` are
    left out. Empty: none are."""
    min_confidence: float = 0.5
    """Probability of the right class, from 0 to 1; read where there is a judge."""
    copy_quantile: float = 0.0
    """Leave out, as copies, generated images as near to a real one that is kept, pixel by pixel, as this share of the
    real ones are to their nearest other: 0 (none) to below 1, e.g. 0.05. Two minutes of a core for a billion pairs of
    28 x 28 pixels."""
    seed: int = 0
    """Of the draws of real and generated images."""

    def __post_init__(self) -> None:
        check_at_least("mix", self, 0, "ratio", "seed", "min_confidence")
        if not 0 < self.real_fraction <= 1:
            raise ConfigError(f"mix.real_fraction={self.real_fraction!r} must lie in (0, 1], e.g. 0.1")
        if self.min_confidence > 1:
            raise ConfigError(f"mix.min_confidence={self.min_confidence!r} must lie in [0, 1], e.g. 0.5")
        if not 0 <= self.copy_quantile < 1:
            raise ConfigError(f"mix.copy_quantile={self.copy_quantile!r} must lie in [0, 1), e.g. 0.05")
        if not self.sources and (self.judge or self.balance or self.copy_quantile):
            raise ConfigError(
                "mix.judge, mix.balance and mix.copy_quantile choose generated images, and mix.sources names none; "
                "set it"
            )


def training_images(data: "Data", mix: Mix) -> ImageSet:
    """What a run trains on: the split `train` of `data`, as `mix` says.

    Raises:
        DataError: generated images that do not fit or are too few, or a class that would be left empty.
    """
    real = load_images(data, "train")
    if mix.real_fraction == 1 and not mix.sources:
        return real
    kept = _share(real.labels, mix)
    real = replace(real, images=real.images[kept], labels=real.labels[kept])
    if not mix.sources:
        return _digested(real)
    made = [_checked(source, real) for source in mix.sources]
    images, labels = torch.cat([m.images for m in made]), torch.cat([m.labels for m in made])
    left_out, num = [], len(labels)
    if mix.judge:
        chosen = _trusted(mix, real, images, labels)
        images, labels = images[chosen], labels[chosen]
        left_out.append(f"{num - len(labels)} of {num} that mix.judge does not believe")
    if mix.copy_quantile:
        chosen = _original(mix, real.images, images)
        left_out.append(f"{len(labels) - int(chosen.sum())} of {len(labels)} as copies of real ones")
        images, labels = images[chosen], labels[chosen]
    rows = _drawn(mix, real, labels)
    return _digested(
        replace(
            real,
            images=torch.cat([real.images, images[rows]]),
            labels=torch.cat([real.labels, labels[rows]]),
            left_out=", ".join(left_out),
        )
    )


def num_generated(mix: Mix, counts: Tensor, label: int) -> int:
    """Generated images that class `label` takes where there are `counts` (K,) real ones."""
    return int(counts.max() - counts[label]) if mix.balance else round(mix.ratio * int(counts[label]))


def _share(labels: Tensor, mix: Mix) -> Tensor:
    """Positions, ascending, of the real images that are kept: of each class its share, one at least."""
    kept = []
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=streams.generator(mix.seed, "mix/real", label))
        kept.append(members[order[: max(1, round(mix.real_fraction * len(members)))]])
    return torch.cat(kept).sort().values


def _drawn(mix: Mix, real: ImageSet, labels: Tensor) -> Tensor:
    """Positions of the generated images that are taken, class by class."""
    counts = torch.bincount(real.labels, minlength=len(real.classes))
    rows = []
    for label, name in enumerate(real.classes):
        wanted = num_generated(mix, counts, label)
        members = (labels == label).nonzero().flatten()
        if len(members) < wanted:
            cure = "generate more, or lower mix.ratio" + (", or mix.min_confidence" if mix.judge else "")
            cure += ", or mix.copy_quantile" if mix.copy_quantile else ""
            raise DataError(
                f"class {name!r} wants {wanted} generated images, and mix.sources has {len(members)} of it; {cure}"
            )
        order = torch.randperm(len(members), generator=streams.generator(mix.seed, "mix/generated", label))
        rows.append(members[order[:wanted]])
    return torch.cat(rows)


def check_fits(source: str, shape: tuple[int, ...], classes: Sequence[str], real: ImageSet) -> None:
    """Raises DataError where generated images (C, H, W) of `classes` cannot lie beside the real ones."""
    if shape != tuple(real.images.shape[1:]):
        raise DataError(
            f"mix.sources has images {shape} in {source!r}, and those of {real.name!r} are "
            f"{tuple(real.images.shape[1:])} (C, H, W); generate with a model of that shape"
        )
    if foreign := sorted(set(classes) - set(real.classes)):
        raise DataError(
            f"mix.sources has classes {', '.join(foreign[:5])} in {source!r}, which {real.name!r} has not "
            f"({', '.join(real.classes[:10])}); generate with a model of these classes"
        )


def _checked(source: str, real: ImageSet) -> ImageSet:
    """The generated set, its labels those of `real`."""
    made = generated.load(generated.local_folder(source))
    check_fits(source, tuple(made.images.shape[1:]), made.classes, real)
    places = torch.tensor([real.classes.index(name) for name in made.classes])
    return replace(made, labels=places[made.labels], classes=real.classes)


def _trusted(mix: Mix, real: ImageSet, images: Tensor, labels: Tensor) -> Tensor:
    """Which generated images the judge takes for their class, (N,) bool."""
    from genray import snapshot
    from genray.evaluation.accuracy import logits_of

    judge = snapshot.load(Path(mix.judge).expanduser())
    if judge.product != "classifier":
        raise ConfigError(f"mix.judge={mix.judge!r} is a {judge.product}; give a classifier's snapshot")
    if judge.image_shape != images.shape[1:] or judge.classes != real.classes:
        raise ConfigError(
            f"mix.judge={mix.judge!r} tells {', '.join(judge.classes[:10])} apart on images {judge.image_shape}, and "
            f"{real.name!r} has {', '.join(real.classes[:10])} on images {tuple(images.shape[1:])} (C, H, W); give a "
            "classifier of these classes and this size"
        )
    return logits_of(judge, images).softmax(1).gather(1, labels[:, None])[:, 0] >= mix.min_confidence


def _original(mix: Mix, reals: Tensor, fakes: Tensor) -> Tensor:
    """Which generated images are no copies, (N,) bool; exact, so that every worker leaves out the same ones."""
    if len(reals) < 2:
        raise DataError(f"mix.copy_quantile={mix.copy_quantile!r} needs two real images or more, got {len(reals)}")
    order = torch.randperm(len(reals), generator=streams.generator(mix.seed, "mix/distances"))
    pixels = reals.flatten(1)
    # of the two nearest one is the image itself, or its double at the same distance 0
    own = nearest(pixels[order[:NUM_MEASURED]], pixels, 2)[0][:, 1]
    return nearest(fakes.flatten(1), pixels)[0][:, 0] > own.quantile(mix.copy_quantile, interpolation="lower")


def _digested(images: ImageSet) -> ImageSet:
    """`images` under the digest of what they are now, channels last in memory."""
    pixels: NDArray[np.uint8] = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    digest = cache.pixel_digest(pixels, images.labels.numpy())
    return replace(images, images=torch.from_numpy(pixels).permute(0, 3, 1, 2), digest=digest)

"""What data sets there are; reading them is `genray.data.images`, ordering them `genray.data.sampler`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a data set before it is read."""

    shape: tuple[int, int, int] | None
    """(C, H, W) of its images. None: they come in any size."""
    num_classes: int
    """Classes of its labels. 0: found when it is read."""
    has_splits: bool
    """Whether it comes with 'train' and 'test'; a set without them is split by a seeded draw."""


DATASETS: dict[str, Source] = {
    "digits": Source(shape=(1, 8, 8), num_classes=10, has_splits=False),
    "mnist": Source(shape=(1, 28, 28), num_classes=10, has_splits=True),
    "fashion-mnist": Source(shape=(1, 28, 28), num_classes=10, has_splits=True),
    "cifar10": Source(shape=(3, 32, 32), num_classes=10, has_splits=True),
    "folder": Source(shape=None, num_classes=0, has_splits=False),
}

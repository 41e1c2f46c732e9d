"""Which images of a set without splits of its own are 'train', and which 'test'."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from genray import streams
from genray.errors import DataError

if TYPE_CHECKING:
    from genray.config import Data


def stratified_split(labels: NDArray[np.int64], train_fraction: float, seed: int) -> dict[str, NDArray[np.int64]]:
    """Positions, ascending, of 'train' and 'test': a seeded draw of the share `train_fraction` of each class.

    A class of two images or more is in both.
    """
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "test": []}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=streams.generator(seed, "split", int(label))).numpy()
        num_train = max(1, min(len(members) - 1, round(train_fraction * len(members))))
        parts["train"].append(members[order[:num_train]])
        parts["test"].append(members[order[num_train:]])
    return {name: np.sort(np.concatenate(members)) for name, members in parts.items()}


def draw_split(data: "Data", labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Positions of `split` in a set without splits of its own."""
    parts = stratified_split(labels, data.train_fraction, data.split_seed) | {"all": np.arange(len(labels))}
    check_split(data.name, split, parts)
    if not len(parts[split]):
        raise DataError(
            f"{data.name!r} has one image a class, so its split {split!r} is empty; add images or say 'all'"
        )
    return parts[split]


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Refuses a split that `name` does not have."""
    if split not in splits:
        raise DataError(f"{name!r} has no split {split!r}; choose from {', '.join(sorted(splits))}")

"""The score card of a model: every score in one table, and samples beside the training images nearest to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genray.data.images import ImageSet
from genray.evaluation import METRICS
from genray.evaluation.distances import nearest
from genray.evaluation.features import Extractor, extract
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.reference import reference_of
from genray.evaluation.scoring import write_scores
from genray.sampling import grid, save_png
from genray.snapshot import Snapshot

SCORES, TABLE = "scores.json", "card.md"
NUM_SAMPLES = 10
"""Rows of the picture."""
NUM_NEIGHBOURS = 9
GAP = 12
"""Dark pixels between the samples and their neighbours."""


def nearest_training_images(
    samples: Tensor, train: ImageSet, extractor: Snapshot | Extractor, batch_size: int, cache: Path | None
) -> NDArray[np.uint8]:
    """A picture of which every row is a sample and, behind a bar, the training images nearest to it, the nearest first.

    Near is what the extractor's features say, as for the metrics of copying.

    Args:
        samples: uint8 (N, C, H, W), N at least 1.
        train: the images that were trained on, at least `NUM_NEIGHBOURS`.
        extractor: as for `reference_of`.
        batch_size: images per forward pass.
        cache: as for `reference_of`.

    Returns:
        uint8 (H', W', 3).

    Raises:
        ProtocolError: as `extract` and `nearest` do.
    """
    known = reference_of(train, extractor, batch_size, cache).features
    _, places = nearest(extract(extractor, samples, batch_size), known, NUM_NEIGHBOURS)
    left, right = grid(samples, 1), grid(train.images[places.flatten()], NUM_NEIGHBOURS)
    return np.concatenate([left, np.full((len(left), GAP, 3), 64, np.uint8), right], axis=1)


def spread_over(images: Tensor, num: int = NUM_SAMPLES) -> Tensor:
    """`num` of the images (N, C, H, W), or all where they are fewer, evenly from the first to the last."""
    places = torch.linspace(0, len(images) - 1, min(num, len(images))).round().long()
    return images[places]


def table(scores: Sequence[Score]) -> str:
    """The scores as Markdown: one row each, then the protocols that they were taken under."""
    rows = ["| metric | value | spread | better | what it says |", "| --- | ---: | ---: | --- | --- |"]
    for score in scores:
        metric = METRICS[score.metric]
        unit = f" {metric.unit}" if metric.unit else ""
        better = "higher" if metric.direction == "max" else "lower"
        rows.append(f"| {score.metric} | {score.value:.4g}{unit} | {score.spread:.2g} | {better} | {_summary(score)} |")
    notes = [f"- {', '.join(names)}: {text}" for text, names in _protocols(scores).items()]
    return "\n".join([*rows, "", *notes])


@dataclass(frozen=True)
class Picture:
    """A file of the card."""

    name: str
    caption: str
    pixels: NDArray[np.uint8]
    """(H, W, 3)."""


def nearest_picture(pixels: NDArray[np.uint8]) -> Picture:
    """What `nearest_training_images` made, as a file of the card."""
    caption = f"Samples, and behind the bar the {NUM_NEIGHBOURS} training images nearest to each."
    return Picture("nearest.png", caption, pixels)


def write(directory: Path, subject: str, scores: Sequence[Score], pictures: Sequence[Picture]) -> list[Path]:
    """Puts `scores.json`, `card.md` and the pictures into `directory`; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    write_scores(directory / SCORES, scores)
    lines = [f"# {subject}", "", table(scores), ""]
    written = [directory / SCORES, directory / TABLE]
    for picture in pictures:
        save_png(directory / picture.name, picture.pixels)
        written.append(directory / picture.name)
        lines += [f"![{picture.caption}]({picture.name})", "", f"*{picture.caption}*", ""]
    (directory / TABLE).write_text("\n".join(lines))
    return written


def _summary(score: Score) -> str:
    """What the metric says of this kind of product; precision and recall mean something else of a classifier."""
    of_samples, _, of_classifier = METRICS[score.metric].summary.partition("; of a classifier: ")
    meant = of_classifier if of_classifier and score.protocol.labels == "none" else of_samples
    return meant.replace("|", r"\|")  # would end the cell


def _protocols(scores: Sequence[Score]) -> dict[str, list[str]]:
    """By what a protocol says besides its metric: the metrics that were taken under it."""
    found: dict[str, list[str]] = {}
    for score in scores:
        own = ", ".join(f"{name} {_short(value)}" for name, value in score.protocol.extra.items())
        found.setdefault(_described(score.protocol), []).append(f"{score.metric} ({own})" if own else score.metric)
    return found


def _described(protocol: Protocol) -> str:
    parts = [f"{protocol.data} {protocol.split} {protocol.data_digest[:12]}", f"{protocol.num_samples:,} images"]
    if protocol.num_seeds > 1:
        parts[-1] += f" for each of {protocol.num_seeds} seeds from {protocol.seed}"
    if protocol.extractor != "none":
        resize = "" if protocol.resize == "none" else f", resize {protocol.resize}"
        parts.append(f"features of {protocol.extractor} {protocol.extractor_digest[:12]}{resize}")
    if protocol.truncation != 1:
        parts.append(f"truncation {protocol.truncation:g}")
    if protocol.labels != "none":
        parts.append(f"labels {protocol.labels}")
    return "; ".join(parts)


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)

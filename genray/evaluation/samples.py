"""Scores of generated images: each metric as a function of one seed's fakes and of the reals."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genray.config import Eval
from genray.data.images import ImageSet
from genray.errors import ProtocolError
from genray.evaluation import inception, kernel, manifold, memorisation
from genray.evaluation.distances import mean_pairwise_distance, nearest
from genray.evaluation.features import Extractor, class_probabilities, extract, resize_of
from genray.evaluation.frechet import Moments, frechet_distance
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.reference import Reference, reference_of
from genray.evaluation.training import BATCH_SIZE, share_right, train_classifier
from genray.snapshot import Snapshot

Details = dict[str, list[float]]


@dataclass(frozen=True)
class Fakes:
    """The generated images of one seed."""

    seed: int
    images: Callable[[], Iterator[Tensor]]
    """Batches, uint8 (B, C, H, W), the same at every call."""
    labels: Tensor | None
    """(N,), int64, the classes that they were made for. None: for none."""
    features: Tensor
    """(N, D), float32, on the CPU."""
    probabilities: Tensor | None
    """(N, K) of the extractor's classes, where a metric needs them."""


@dataclass
class Comparison:
    """The reals, and what follows from them once for the fakes of all seeds."""

    reals: ImageSet
    extractor: Snapshot | Extractor
    settings: Eval
    load_train: Callable[[], ImageSet]
    """The images that were trained on; asked only for the metrics that compare with them."""
    cache: Path | None
    device: str
    num_samples: int
    """Images of a seed."""
    own_radii: dict[int, Tensor] = field(default_factory=dict)
    """Filled by `radii`."""

    @cached_property
    def reference(self) -> Reference:
        """Features of the reals."""
        return reference_of(self.reals, self.extractor, self.settings.batch_size, self.cache)

    @cached_property
    def points(self) -> Tensor:
        """Features of the reals, on the device."""
        return self.reference.features.to(self.device)

    def radii(self, k: int) -> Tensor:
        """Distance of every real to its `k`-th neighbour."""
        if k not in self.own_radii:
            self.own_radii[k] = manifold.radii(self.points, k)
        return self.own_radii[k]

    @cached_property
    def train(self) -> ImageSet:
        """The images that were trained on."""
        return self.load_train()

    @cached_property
    def train_points(self) -> Tensor:
        """Their features, on the device."""
        return reference_of(self.train, self.extractor, self.settings.batch_size, self.cache).features.to(self.device)

    @cached_property
    def held_out_to_train(self) -> Tensor:
        """Distance of every real to the nearest training image, (N,)."""
        if self.train.digest == self.reals.digest:
            raise ProtocolError(
                f"eval.split={self.settings.split!r} is what was trained on; copies are told by comparison "
                "with unseen images: take the split test"
            )
        return nearest(self.points, self.train_points)[0].flatten()

    @cached_property
    def cells(self) -> tuple[Tensor, Tensor]:
        """Centres of the cells of the training set, and the cell of every real."""
        centres = memorisation.cell_centres(self.train_points)
        return centres, nearest(self.points, centres)[1].flatten()

    @cached_property
    def diversity(self) -> float:
        """Mean distance of two reals."""
        return mean_pairwise_distance(self.points)

    @cached_property
    def subset_size(self) -> int:
        """Images in a subset of KID."""
        return min(kernel.SUBSET_SIZE, len(self.reals), self.num_samples)

    @cached_property
    def real_classifier(self) -> nn.Module:
        """A classifier of the training images."""
        return self.classifier(self.train.images, self.train.labels, self.settings.seed)

    def classifier(self, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
        """A classifier of these images."""
        num_classes = len(self.reals.classes)
        return train_classifier(images, labels, num_classes, seed, self.settings.classifier_steps, self.device)


def observe(
    against: Comparison,
    seed: int,
    images: Callable[[], Iterator[Tensor]],
    labels: Tensor | None,
    names: Iterable[str],
) -> Fakes:
    """Fakes with all that the metrics `names` need of them, in one pass over the images."""
    features, probabilities = [], []
    for batch in images():
        features.append(extract(against.extractor, batch, against.settings.batch_size))
        if "inception_score" in names:
            probabilities.append(class_probabilities(against.extractor, batch, against.settings.batch_size))
    return Fakes(seed, images, labels, torch.cat(features), torch.cat(probabilities) if probabilities else None)


def sample_scores(
    names: Sequence[str], against: Comparison, fakes: Iterable[Fakes], *, num_seeds: int, labels: str
) -> list[Score]:
    """The metrics `names` over the fakes of all seeds, in this order.

    Args:
        names: those in `TAKERS`.
        against: the reals.
        fakes: of one seed after the other, at least one.
        num_seeds: how many.
        labels: how the fakes' classes were chosen, for the protocol.

    Raises:
        ProtocolError: too few images for a metric, or fakes without classes for one that needs them.
    """
    values: dict[str, list[float]] = {name: [] for name in names}
    details: dict[str, list[Details]] = {name: [] for name in names}
    for one in fakes:
        shared: dict[str, Any] = {}
        for name in names:
            taken, more = TAKERS[name](against, one, shared)
            values[name] += taken
            details[name].append(more)
    settings, extractor = against.settings, against.extractor
    common: dict[str, Any] = {
        "data": against.reals.name,
        "split": against.reals.split,
        "data_digest": against.reals.digest,
        "num_samples": against.num_samples,
        "num_seeds": num_seeds,
        "seed": settings.seed,
        "extractor": extractor.task,
        "extractor_digest": extractor.digest,
        "resize": resize_of(extractor),
        "truncation": settings.truncation,
        "labels": labels,
    }
    return [
        Score.of(values[n], Protocol(metric=n, extra=_extra(n, against), **common), _mean(details[n])) for n in names
    ]


Taken = tuple[list[float], Details]


def _fid(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    reference = against.reference
    return [frechet_distance(reference.moments, Moments.of(fakes.features), reference.root)], {}


def _kid(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    reals = against.reference.features
    return kernel.kernel_distances(reals, fakes.features, fakes.seed, kernel.NUM_SUBSETS, against.subset_size), {}


def _inception_score(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    assert fakes.probabilities is not None
    return inception.inception_scores(fakes.probabilities), {}


def _ifid(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    labels, names = _labels("ifid", fakes), against.reals.classes
    found = []
    for label, name in enumerate(names):
        real, fake = against.reference.features[against.reals.labels == label], fakes.features[labels == label]
        if min(len(real), len(fake)) < 2:
            raise ProtocolError(
                f"ifid needs at least 2 images of every class; of {name!r} there are {len(real)} reals and "
                f"{len(fake)} fakes: raise eval.num_samples, or take a larger split"
            )
        found.append(frechet_distance(Moments.of(real), Moments.of(fake)))
    return [sum(found) / len(found)], {"per_class": found}


def _precision(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    points = fakes.features.to(against.device)
    return [manifold.share_inside(points, against.points, against.radii(manifold.PRECISION_K))], {}


def _recall(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    points = fakes.features.to(against.device)
    return [manifold.share_inside(against.points, points, manifold.radii(points, manifold.PRECISION_K))], {}


def _density_coverage(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> tuple[float, float]:
    if "density" not in shared:
        points, reach = fakes.features.to(against.device), against.radii(manifold.DENSITY_K)
        shared["density"] = manifold.density_coverage(against.points, points, reach)
    found: tuple[float, float] = shared["density"]
    return found


def _density(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    return [_density_coverage(against, fakes, shared)[0]], {}


def _coverage(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    return [_density_coverage(against, fakes, shared)[1]], {}


def _diversity(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    own = mean_pairwise_distance(fakes.features.to(against.device))
    return [own / against.diversity], {"fakes": [own], "reals": [against.diversity]}


def _to_train(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Distance of every fake to the nearest training image, and its place."""
    if "train" not in shared:
        distance, place = nearest(fakes.features.to(against.device), against.train_points)
        shared["train"] = distance.flatten(), place.flatten()
    found: tuple[Tensor, Tensor] = shared["train"]
    return found


def _train_distance(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    own, usual = (_median(x) for x in (_to_train(against, fakes, shared)[0], against.held_out_to_train))
    if usual == 0:
        raise ProtocolError(
            f"half of the {against.reals.split} split is in the training set, so train_distance says nothing; "
            "take another split"
        )
    return [own / usual], {"fakes": [own], "reals": [usual]}


def _median(values: Tensor) -> float:
    """The mean of the two in the middle where their number is even; torch's own takes the lower one."""
    return float(values.double().quantile(0.5))


def _auth_pct(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    distance, place = _to_train(against, fakes, shared)
    met, index = torch.unique(place, return_inverse=True)
    # of the two nearest one is the training image itself, or its double at the same distance 0
    own = nearest(against.train_points[met], against.train_points, 2)[0][:, 1]
    return [memorisation.auth_pct(distance, index, own)], {}


def _c_t(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    distance, _ = _to_train(against, fakes, shared)
    centres, real_cells = against.cells
    cells = nearest(fakes.features.to(against.device), centres)[1].flatten()
    return [memorisation.c_t(distance, cells, against.held_out_to_train, real_cells, len(centres))], {}


def _cas(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    labels = _labels("cas", fakes)
    module = against.classifier(torch.cat(list(fakes.images())), labels, fakes.seed)
    return [share_right(module, against.reals.images, against.reals.labels, against.settings.batch_size)], {}


def _cas_reverse(against: Comparison, fakes: Fakes, shared: dict[str, Any]) -> Taken:
    labels = _labels("cas_reverse", fakes)
    images = torch.cat(list(fakes.images()))
    return [share_right(against.real_classifier, images, labels, against.settings.batch_size)], {}


TAKERS: dict[str, Callable[[Comparison, Fakes, dict[str, Any]], Taken]] = {
    "fid": _fid,
    "kid": _kid,
    "precision": _precision,
    "recall": _recall,
    "density": _density,
    "coverage": _coverage,
    "inception_score": _inception_score,
    "ifid": _ifid,
    "diversity": _diversity,
    "train_distance": _train_distance,
    "auth_pct": _auth_pct,
    "c_t": _c_t,
    "cas": _cas,
    "cas_reverse": _cas_reverse,
}
"""By metric; the last argument is what the metrics of one seed share with each other."""


def _extra(name: str, against: Comparison) -> dict[str, Any]:
    """What the metric alone depends on, for its protocol."""
    if name in ("train_distance", "auth_pct", "c_t"):
        cells = {"cells": memorisation.NUM_CELLS, "min_fakes": memorisation.MIN_FAKES} if name == "c_t" else {}
        return {"train_digest": against.train.digest, **cells}
    if name in ("cas", "cas_reverse"):
        trained_on = {"train_digest": against.train.digest} if name == "cas_reverse" else {}
        return {"steps": against.settings.classifier_steps, "batch_size": BATCH_SIZE, **trained_on}
    return {
        "kid": {"num_subsets": kernel.NUM_SUBSETS, "subset_size": against.subset_size},
        "inception_score": {"splits": inception.NUM_SPLITS},
        "precision": {"k": manifold.PRECISION_K},
        "recall": {"k": manifold.PRECISION_K},
        "density": {"k": manifold.DENSITY_K},
        "coverage": {"k": manifold.DENSITY_K},
    }.get(name, {})


def _labels(name: str, fakes: Fakes) -> Tensor:
    if fakes.labels is None:
        raise ProtocolError(
            f"{name} compares class by class, and these images were made for no class; "
            "take a conditional model, or a folder with one folder a class"
        )
    return fakes.labels


def _mean(details: list[Details]) -> Details:
    """Of every number over the seeds."""
    return {
        name: [sum(column) / len(details) for column in zip(*(d[name] for d in details), strict=True)]
        for name in details[0]
    }

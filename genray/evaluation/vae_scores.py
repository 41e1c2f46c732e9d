"""Scores of a VAE's likelihood, latent and reconstructions on every image of a split."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from genray.config import Eval
from genray.data.images import ImageSet
from genray.errors import ProtocolError
from genray.evaluation.classifier_scores import of_reals
from genray.evaluation.features import extract, resize_of
from genray.evaluation.frechet import Moments, frechet_distance
from genray.evaluation.latent import active_units, mean_variance, reconstructions
from genray.evaluation.likelihood import (
    Bounds,
    Posteriors,
    bits_per_dim,
    bounds,
    importance_nll,
    objective_of,
    posteriors,
)
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.samples import Comparison
from genray.objectives.elbo import ACTIVE_VARIANCE
from genray.snapshot import Snapshot

LIKELIHOOD = ("elbo", "recon_nll", "kl", "nll", "bits_per_dim", "active_units")
"""Metrics of autoencoders that were trained on a bound of the likelihood."""


def likelihood_scores(names: Sequence[str], model: Snapshot, reals: ImageSet, settings: Eval) -> dict[str, Score]:
    """The metrics `names` by name, each over the seeds of latents and binarisation.

    `kl` has the divergence of every latent dimension beside it, where posterior and prior are normal, `active_units`
    the variance of its mean.

    Raises:
        ProtocolError: too few images.
        DivergenceError: a value is not finite.
    """
    objective = objective_of(model)
    num_dims = math.prod(model.image_shape)

    @cache
    def bound(seed: int) -> Bounds:
        return bounds(model, reals.images, seed, settings.batch_size, reals.labels)

    def of_levels(seed: int) -> Bounds:
        if objective.likelihood != "gaussian":
            return bound(seed)
        return bounds(model, reals.images, seed, settings.batch_size, reals.labels, dequantize=True)

    @cache
    def posterior(seed: int) -> Posteriors:
        return posteriors(model, reals.images, seed, settings.batch_size, reals.labels)

    def nll(seed: int) -> float:
        found = importance_nll(
            model, reals.images, seed, settings.importance_samples, settings.batch_size, reals.labels
        )
        return float(found.mean())

    taken: dict[str, Callable[[int], float]] = {
        "elbo": lambda seed: float(bound(seed).elbo.mean()),
        "recon_nll": lambda seed: float(bound(seed).recon_nll.mean()),
        "kl": lambda seed: float(bound(seed).kl.mean()),
        "bits_per_dim": lambda seed: bits_per_dim(-float(of_levels(seed).elbo.mean()), num_dims, objective.likelihood),
        "nll": nll,
        "active_units": lambda seed: active_units(posterior(seed).mu),
    }
    module: Any = model.module
    details: dict[str, Callable[[], dict[str, Any]]] = {
        "kl": lambda: {"per_dimension": posterior(settings.seed).kl.mean(0).tolist()} if module.closed_kl else {},
        "active_units": lambda: {"variance_per_dimension": mean_variance(posterior(settings.seed).mu).tolist()},
    }
    likelihood: dict[str, Any] = {"likelihood": objective.likelihood}
    if objective.likelihood == "bernoulli":
        likelihood["binarize"] = objective.binarize
    elif objective.likelihood == "gaussian":
        likelihood["sigma"] = objective.sigma
    own: dict[str, dict[str, Any]] = {
        "nll": {"draws": settings.importance_samples},
        "active_units": {"least_variance": ACTIVE_VARIANCE},
    }
    if objective.likelihood == "gaussian":
        own["bits_per_dim"] = {"draws": 1, "levels": "spread evenly"}
    common = of_reals(reals, num_seeds=settings.num_seeds, seed=settings.seed)
    scores = {}
    for name in names:
        values = [taken[name](seed) for seed in range(settings.seed, settings.seed + settings.num_seeds)]
        protocol = Protocol(metric=name, extra=likelihood | own.get(name, {"draws": 1}), **common)
        scores[name] = Score.of(values, protocol, details.get(name, dict)())
    return scores


def psnr_score(model: Snapshot, reals: ImageSet, settings: Eval) -> Score:
    """Peak signal to noise in dB of the reconstructions: of pixels from 0 to 255, over all images together.

    Raises:
        DivergenceError: a pixel is not finite.
        ProtocolError: not one pixel of the reconstructions is wrong, and the ratio infinite.
    """
    total, count = 0, 0
    for start, part in zip(
        range(0, len(reals.images), settings.batch_size),
        reconstructions(model, reals.images, settings.batch_size, reals.labels),
        strict=True,
    ):
        gap = part.long() - reals.images[start : start + len(part)].long()
        total, count = total + int(gap.square().sum()), count + gap.numel()
    if total == 0:
        raise ProtocolError("psnr: every pixel comes back as it was, and the ratio is infinite; take other images")
    value = 10 * math.log10(255**2 * count / total)
    return Score.of([value], Protocol(metric="psnr", extra={}, **of_reals(reals, num_seeds=1, seed=0)))


def reconstruction_score(model: Snapshot, against: Comparison) -> Score:
    """Fréchet distance of the reals to their own reconstructions through the posterior's mean.

    Raises:
        ProtocolError: too few images.
        DivergenceError: a pixel is not finite.
    """
    reals, settings, extractor = against.reals, against.settings, against.extractor
    parts = reconstructions(model, reals.images, settings.batch_size, reals.labels)
    features = torch.cat([extract(extractor, part, settings.batch_size) for part in parts])
    value = frechet_distance(against.reference.moments, Moments.of(features), against.reference.root)
    protocol = Protocol(
        metric="reconstruction_fid",
        extractor=extractor.task,
        extractor_digest=extractor.digest,
        resize=resize_of(extractor),
        extra={"latent": "mean"},
        **of_reals(reals, num_seeds=1, seed=0),
    )
    return Score.of([value], protocol)

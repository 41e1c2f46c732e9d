"""A distribution over the latents of a trained autoencoder, to draw from in place of its prior.

The encoder's means of the training images, or draws of its posteriors, seldom lie as the prior says (Dai and Wipf
2019, arXiv:1903.05789; Ghosh et al. 2020, arXiv:1903.12436); a mixture of normal distributions fitted to them
does. It becomes part of the model, as buffers: drawing, scoring, serving and the registry need not know.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from genray import snapshot
from genray.data.images import ImageSet
from genray.errors import ConfigError
from genray.evaluation.latent import latents_of
from genray.models.vae import VAE
from genray.streams import derive_seed

MAX_POINTS = 20_000
"""Most images that a mixture is fitted to; more hardly move it."""


def fit_mixture(directory: Path, to: Path, images: ImageSet, *, num_components: int, seed: int = 0) -> str:
    """Writes the snapshot at `directory` with a mixture fitted to its latents of `images` at `to`; its digest.

    Args:
        directory: snapshot of a VAE or a regularised autoencoder.
        to: folder to make.
        images: its training images.
        num_components: normal distributions, each with a full covariance.
        seed: of the fit, and of draws from the posteriors.

    Raises:
        ConfigError: the snapshot is no such autoencoder, or there are fewer images than components.
        CheckpointError: the snapshot is damaged.
    """
    made = snapshot.load(directory)
    if not isinstance(made.module, VAE):
        raise ConfigError(f"snapshot of {made.task!r} is a {made.product}, which has no latents to fit; use a VAE's")
    if made.data_digest != images.digest:
        raise ConfigError(
            f"the images are not those that {directory} was trained on: their digest is {images.digest[:12]}…, "
            f"expected {made.data_digest[:12]}…; set --root"
        )
    # at most MAX_POINTS images, evenly over the set
    places = slice(None, None, math.ceil(len(images.images) / MAX_POINTS))
    points = latents_of(made, images.images[places], images.labels[places], seed)
    if not 1 <= num_components <= len(points):
        raise ConfigError(f"num_components={num_components!r} must lie between 1 and {len(points)}, the images")
    weights, means, factors = mixture_of(points, num_components, seed)
    model: Any = replace(made.config.model, num_components=num_components)  # type: ignore[type-var]
    config = replace(made.config, model=model)
    with torch.random.fork_rng(devices=[]):
        module: Any = model.build(made.image_shape, len(made.classes))[made.product]
    own = module.state_dict()
    own.update({k: v for k, v in made.module.state_dict().items() if not k.startswith("mixture.")})
    own.update({"mixture.weights": weights, "mixture.means": means, "mixture.factors": factors})
    module.load_state_dict(own, strict=True)
    return snapshot.save(
        to,
        module.state_dict(),
        config,
        step=made.step,
        samples_seen=made.samples_seen,
        classes=made.classes,
        data_digest=made.data_digest,
    )


def mixture_of(points: Tensor, num_components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, D) and Cholesky factors of the covariances (K, D, D) that fit `points` (N, D) best."""
    mixture = GaussianMixture(num_components, random_state=derive_seed(seed, "fit/mixture") % 2**32)
    mixture.fit(points.double().numpy())
    parts = (mixture.weights_, mixture.means_, np.linalg.cholesky(mixture.covariances_))
    weights, means, factors = (torch.from_numpy(part).float() for part in parts)
    return weights, means, factors

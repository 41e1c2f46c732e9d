"""A distribution over the latents of a trained autoencoder, to draw from in place of its prior.

The encoder's means of the training images, or draws of its posteriors, seldom lie as the prior says (Dai and Wipf
2019, arXiv:1903.05789; Ghosh et al. 2020, arXiv:1903.12436); what is fitted to them does: a mixture of normal
distributions, a second VAE, or masked autoregressive flows. It becomes part of the model: drawing, scoring, serving
and the registry need not know. Latents are few and small, so one process fits them, in seconds to minutes.
"""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genray import optim, snapshot
from genray.config import Optim
from genray.data.images import ImageSet
from genray.errors import ConfigError, DivergenceError
from genray.evaluation.latent import has_posterior, latents_of
from genray.evaluation.vae_scores import LIKELIHOOD
from genray.models.fitted_latents import MaskedFlows, SecondStage
from genray.models.vae import VAE
from genray.snapshot import Snapshot
from genray.streams import Draws, derive_seed, generator

Distribution = Literal["mixture", "second-stage", "flows"]
KNOBS = ("num_components", "second_stage", "num_masked_flows")
"""Of a VAE's architecture: what was fitted to its latents."""
PARTS = ("mixture.", "second_stage.", "masked_flows.")
"""Where a VAE has it."""

MAX_POINTS = 20_000
"""Most images whose latents are fitted; more hardly move a mixture."""
NUM_STEPS = 4000
"""Steps of a second stage or of flows, unless said otherwise."""
BATCH_SIZE = 256
HELD_OUT = 0.1
"""Share of the images by whose latents, which teach nothing, the best step is chosen."""
CHECK_EVERY = 100
"""Steps between two looks at those."""
SECOND_STAGE, NUM_MASKED_FLOWS = 256, 5
OPTIM = Optim(lr=1e-3, schedule="cosine")


def fit(
    directory: Path,
    to: Path,
    images: ImageSet,
    *,
    distribution: Distribution = "mixture",
    num_components: int = 10,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
) -> str:
    """Writes the snapshot at `directory` with a distribution fitted to its latents of `images` at `to`; its digest.

    Equal arguments give equal snapshots, and a fit that was killed leaves nothing at `to`.

    Args:
        directory: snapshot of a VAE or a regularised autoencoder; what was fitted to it before gives way.
        to: folder to make.
        images: its training images.
        distribution: what to fit.
        num_components: normal distributions of a mixture, each with a full covariance.
        num_steps: batches that a second stage or flows are trained on.
        seed: of the fit, and of draws from the posteriors.

    Raises:
        ConfigError: the snapshot is no such autoencoder, a number is out of range, there are too few images, or `to` is
            there already.
        CheckpointError: the snapshot is damaged.
        DivergenceError: latents are not finite, or the distribution finds no finite density for them.
    """
    if to.exists():
        raise ConfigError(f"{to} exists; give the name of a new folder")
    made = snapshot.load(directory)
    if not isinstance(made.module, VAE):
        raise ConfigError(f"snapshot of {made.task!r} is a {made.product}, {_instead(made)}")
    if made.data_digest != images.digest:
        raise ConfigError(
            f"the images are not those that {directory} was trained on: their digest is {images.digest[:12]}…, "
            f"expected {made.data_digest[:12]}…; set --root"
        )
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps!r} must be at least 1")
    sizes = {"mixture": num_components, "second-stage": SECOND_STAGE, "flows": NUM_MASKED_FLOWS}
    knobs = {knob: size if kind == distribution else 0 for knob, (kind, size) in zip(KNOBS, sizes.items(), strict=True)}
    points = _points(made, images, seed, alone=distribution == "mixture")
    if distribution == "mixture" and not 1 <= num_components <= points.shape[1]:
        raise ConfigError(f"num_components={num_components!r} must lie between 1 and {points.shape[1]}, the images")
    model: Any = replace(made.config.model, **knobs)  # type: ignore[type-var]
    metrics = tuple(name for name in made.config.eval.metrics if name not in LIKELIHOOD)  # that is of the prior before
    config = replace(made.config, model=model, eval=replace(made.config.eval, metrics=metrics))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "fit/weights"))
        module: Any = config.model.build(made.image_shape, len(made.classes))[made.product]
    trained = {name: value for name, value in made.module.state_dict().items() if not name.startswith(PARTS)}
    module.load_state_dict(module.state_dict() | trained, strict=True)
    if distribution == "mixture":
        parts = zip(("weights", "means", "factors"), mixture_of(points[0], num_components, seed), strict=True)
        module.mixture.load_state_dict(dict(parts))
    else:
        learn(module.second_stage or module.masked_flows, points, num_steps, seed)
    return snapshot.save(
        to,
        module.state_dict(),
        config,
        step=made.step,
        samples_seen=made.samples_seen,
        classes=made.classes,
        data_digest=made.data_digest,
    )


def _instead(made: Snapshot) -> str:
    """Why nothing is fitted to the latents of a model that is no VAE of one vector, and what to do."""
    if made.product == "vae":
        return "whose maps of latents have a prior that is trained with them; it needs no fit"
    if made.product != "tokenizer":
        return "which has no latents to fit; use a VAE's"
    if getattr(made.config.model, "quantizer", "") != "none":
        return "which has codes; train a code-transformer on it"
    return "which has maps of latents; train a latent-flow on it"


def _points(made: Snapshot, images: ImageSet, seed: int, *, alone: bool) -> Tensor:
    """Latents (K, N, latent_dim) of N images, evenly over the set; `alone`, or where they do not scatter, K is 1."""
    places = slice(None, None, math.ceil(len(images.images) / MAX_POINTS))
    own = images.images[places], images.labels[places]
    num = 1 if alone or not has_posterior(made) else max(1, MAX_POINTS // len(own[1]))
    points = torch.stack([latents_of(made, *own, seed, draw) for draw in range(num)])
    if not bool(points.isfinite().all()):
        raise DivergenceError(f"VAE {made.task!r} gives latents that are not finite; take an earlier snapshot")
    return points


def mixture_of(points: Tensor, num_components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, D) and Cholesky factors of the covariances (K, D, D) that fit `points` (N, D) best."""
    from sklearn.mixture import GaussianMixture  # slow to import, and the command line reads this file

    mixture = GaussianMixture(num_components, random_state=derive_seed(seed, "fit/mixture") % 2**32)
    mixture.fit(points.double().numpy())
    parts = (mixture.weights_, mixture.means_, np.linalg.cholesky(mixture.covariances_))
    weights, means, factors = (torch.from_numpy(part).float() for part in parts)
    return weights, means, factors


def learn(distribution: SecondStage | MaskedFlows, points: Tensor, num_steps: int, seed: int) -> float:
    """Raises the density of `points` under `distribution`; mean nats of those held out at the best step, which stays.

    Args:
        distribution: trained in place.
        points: (K, N, D), K draws of the latents of N images.
        num_steps: batches of `BATCH_SIZE` points.
        seed: of the split and the batches.

    Raises:
        ConfigError: too few images to hold any out.
        DivergenceError: no step has a finite density for those held out.
    """
    num_held = int(HELD_OUT * points.shape[1])
    if num_held < 1:
        raise ConfigError(
            f"{points.shape[1]} images are too few to hold {HELD_OUT:.0%} of them out; "
            f"take {math.ceil(1 / HELD_OUT)} or more, or fit a mixture"
        )
    order = torch.randperm(points.shape[1], generator=generator(seed, "fit/split"))
    held, own = points[:, order[:num_held]].flatten(0, 1)[:MAX_POINTS], points[:, order[num_held:]]
    distribution.scaling.measure(own)
    optimizer = optim.build(distribution, OPTIM, OPTIM.lr)
    best, kept = -math.inf, distribution.state_dict()
    for step in range(num_steps):
        draws = Draws(seed=seed, step=step, num_global=BATCH_SIZE, start=0, stop=BATCH_SIZE, device=torch.device("cpu"))
        optim.set_rates(optimizer, OPTIM.lr * optim.lr_factor(OPTIM, step, num_steps), OPTIM.betas)
        batch = own[draws.integers("fit/draws", own.shape[0]), draws.integers("fit/images", own.shape[1])]
        optimizer.zero_grad()
        loss = -_bound(distribution, batch, draws.normal("fit/noise", own.shape[2])).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == num_steps:
            nats = _nats(distribution, held, seed)
            if nats > best:
                best, kept = nats, copy.deepcopy(distribution.state_dict())
    if best == -math.inf:
        raise DivergenceError(f"no finite density was found for latents in {num_steps} steps; take an earlier snapshot")
    distribution.load_state_dict(kept)
    return best


def _bound(distribution: SecondStage | MaskedFlows, points: Tensor, noise: Tensor) -> Tensor:
    """Log density of points (B, D), (B,), or its lower bound by `noise` (B, D)."""
    if isinstance(distribution, MaskedFlows):
        return distribution.log_density(points)
    return distribution.bound(points, noise)


@torch.no_grad()
def _nats(distribution: SecondStage | MaskedFlows, points: Tensor, seed: int) -> float:
    noise = torch.randn(points.shape, generator=generator(seed, "fit/held-out noise"))
    return float(_bound(distribution, points, noise).mean())

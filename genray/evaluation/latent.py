"""What a VAE makes of its latent: which dimensions it uses, and what comes back through them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genray.errors import ConfigError, ProtocolError
from genray.evaluation.features import check_shape
from genray.objectives.elbo import ACTIVE_VARIANCE
from genray.objectives.rae import RAE
from genray.sampling import latents, reconstruct, to_float
from genray.snapshot import Snapshot
from genray.streams import derive_seed


def mean_variance(mu: Tensor) -> Tensor:
    """Variance over images of each posterior mean, (latent_dim,), of `mu` (N, latent_dim).

    Raises:
        ProtocolError: fewer than two images.
    """
    if len(mu) < 2:
        raise ProtocolError(f"active units need at least 2 images, got {len(mu)}; take a larger split")
    return mu.double().var(0)


def active_units(mu: Tensor) -> int:
    """Latent dimensions whose posterior mean changes with the image: 0 where the latent is not used at all.

    Burda et al. 2016, arXiv:1509.00519, section 5.2.

    Args:
        mu: posterior means (N, latent_dim).

    Raises:
        ProtocolError: fewer than two images.
    """
    return int((mean_variance(mu) > ACTIVE_VARIANCE).sum())


def reconstructions(
    vae: Snapshot, images: Tensor, batch_size: int = 256, labels: Tensor | None = None
) -> Iterator[Tensor]:
    """Images as they come back through the mean of their posterior, or their codes, uint8; pixels stay grey.

    Raises:
        ConfigError: the snapshot is neither a VAE nor a tokenizer.
        ProtocolError: the images have another shape.
        DivergenceError: a pixel is not finite.
    """
    if vae.product not in ("vae", "tokenizer"):
        raise ConfigError(f"snapshot of {vae.task!r} is a {vae.product}, which reconstructs nothing; use a VAE's")
    check_shape(vae.product, vae, images)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield reconstruct(vae.module, images[part], None if labels is None else labels[part])


@torch.no_grad()
def latents_of(
    vae: Snapshot, images: Tensor, labels: Tensor, seed: int, draw: int = 0, batch_size: int = 256
) -> Tensor:
    """Latents (N, latent_dim) of images, uint8 (N, C, H, W), of labels (N,).

    The draw of this number from each posterior; of a regularised autoencoder, which trains none, its mean. The encoder
    sees the greys, also where training binarises them: what is fitted to their latents draws better images
    (digits-vae and a mixture: FID 10.4, and 12.0 of binarised ones).
    """
    module: Any = vae.module.eval()
    model: Any = vae.config.model
    noise = latents(len(images), model.latent_dim, derive_seed(seed, "fit/posterior", draw))
    if not has_posterior(vae):
        noise = torch.zeros_like(noise)
    found = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        own = labels[part] if module.num_labels else None
        found.append(module(to_float(images[part]), noise[part], own).z)
    return torch.cat(found)


def has_posterior(vae: Snapshot) -> bool:
    """Whether the spread of its latents of an image was trained."""
    return not isinstance(vae.config.objective, RAE)

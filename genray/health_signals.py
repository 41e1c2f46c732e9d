"""What a run says of its health: numbers made of what the loop has anyway."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from genray.errors import ProtocolError
from genray.evaluation.features import Extractor, class_probabilities, extract
from genray.snapshot import Snapshot

DIVERSITY, SKIPPED, ACCURACY = "health/diversity", "health/skipped_share", "health/discriminator_accuracy"
FEATURE_DISTANCE, CLASS_ENTROPY = "health/feature_distance", "health/class_entropy"
GENERATOR_LOSS, KL, CODES_USED = "generator/loss", "vae/kl", "tokenizer/codes_used"

logger = logging.getLogger(__name__)


def signals(values: Mapping[str, float]) -> dict[str, float]:
    """What the means of a log point say about the balance of a GAN; nothing for other runs.

    `health/sign_reals` is the mean sign of the logits of reals, in [-1, 1]: near 1 the discriminator knows its
    training images by heart (Karras et al. 2020, arXiv:2006.06676, equation 1).
    """
    found = {}
    if {"discriminator/logits_reals", "discriminator/logits_fakes"} <= values.keys():
        reals, fakes = values["discriminator/accuracy_reals"], values["discriminator/accuracy_fakes"]
        found["health/logit_gap"] = values["discriminator/logits_reals"] - values["discriminator/logits_fakes"]
        found["health/sign_reals"] = 2 * reals - 1
        found[ACCURACY] = (reals + fakes) / 2
    if values.get("discriminator/grad_norm") and "generator/grad_norm" in values:
        found["health/grad_norm_ratio"] = values["generator/grad_norm"] / values["discriminator/grad_norm"]
    return found


def diversity(images: Tensor, labels: Tensor | None) -> float:
    """Mean distance of two images of one class: root mean square over pixels, from 0 to 1.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,), or None for one class.
    """
    pixels = images.flatten(1).float() / 255
    return distance_within_classes(pixels, labels) / math.sqrt(pixels.shape[1])


def distance_within_classes(points: Tensor, labels: Tensor | None) -> float:
    """Mean Euclidean distance of two rows of `points` (N, D) of one class; `labels` (N,), or None for one class."""
    groups = [points] if labels is None else [points[labels == label] for label in set(labels.tolist())]
    return float(torch.cat([torch.pdist(group) for group in groups]).mean())


def class_entropy(probabilities: Tensor) -> float:
    """Entropy in nats of the classes of all images together, from 0, one class, to the logarithm of their number.

    Args:
        probabilities: (N, K), of each image.
    """
    return float(torch.special.entr(probabilities.double().mean(0)).sum())


def feature_signals(extractor: Snapshot | Extractor, images: Tensor, labels: Tensor | None) -> dict[str, float]:
    """What a network sees in images of the fixed latents: how far apart they are, and of how many classes.

    Nothing where it does not take them, which the scores of the run will say, too; no entropy where it has no classes.

    Args:
        extractor: whose features the scores of the run compare.
        images: uint8 (N, C, H, W).
        labels: (N,), the classes that they were made for, or None.
    """
    found = {}
    try:
        found[FEATURE_DISTANCE] = distance_within_classes(extract(extractor, images), labels)
        found[CLASS_ENTROPY] = class_entropy(class_probabilities(extractor, images))
    except ProtocolError as error:
        logger.debug("not every signal of features is taken: %s", error)
    return found

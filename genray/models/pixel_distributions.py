"""What a decoder says of the pixels of an image.

Named by `output`: `logits`, whose sigmoid is the probability (Bernoulli) or the mean (Gaussian) of a pixel in [0, 1];
the same with a log standard deviation per pixel, or one for all (Rybkin et al. 2021, arXiv:2006.13202); or a mixture
of logistic distributions (Salimans et al. 2017, arXiv:1701.05517).
"""

from typing import Literal

import torch
from torch import Tensor

LEAST_LOG_SIGMA = -6.0
"""Least log standard deviation of a pixel on a scale of 0 to 1: well below a grey level."""
NUM_LOGISTICS = 10
"""Logistic distributions in the mixture of a pixel."""

Output = Literal["logits", "scale", "global-scale", "logistic-mixture"]


def num_outputs(output: Output, channels: int) -> int:
    """Channels that a decoder ends in, for images of `channels`."""
    return {
        "logits": channels,
        "global-scale": channels,
        "scale": 2 * channels,
        "logistic-mixture": NUM_LOGISTICS * (1 + 2 * channels),
    }[output]


def mixture_parts(decoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights before the softmax (B, K, H, W), means on [-1, 1], log scales, each (B, K, C, H, W), of K logistics."""
    weights, rest = decoded[:, :NUM_LOGISTICS], decoded[:, NUM_LOGISTICS:]
    means, log_scales = rest.view(len(rest), 2, NUM_LOGISTICS, -1, *rest.shape[2:]).unbind(dim=1)
    return weights, means, log_scales


def mean_images(decoded: Tensor, output: Output) -> Tensor:
    """Means (B, C, H, W) on [-1, 1] of what a decoder says, (B, P, H, W)."""
    decoded = decoded.float()
    if output == "logistic-mixture":
        weights, means, _ = mixture_parts(decoded)
        return (weights.softmax(dim=1).unsqueeze(2) * means).sum(dim=1).clamp(-1, 1)
    logits = decoded if output == "logits" else decoded.chunk(2, dim=1)[0]
    return 2 * torch.sigmoid(logits) - 1

"""Negative log likelihoods of images, summed over pixels, in nats."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genray.models.pixel_distributions import LEAST_LOG_SIGMA, mixture_parts

OUTPUTS = {
    "bernoulli": ("logits",),
    "gaussian": ("logits", "scale", "global-scale"),
    "logistic-mixture": ("logistic-mixture",),
}
"""Which `model.output` each likelihood reads."""
LEAST_LOG_SCALE = -7.0
"""Least log scale of a logistic on [-1, 1]: a tenth of a grey level."""


def check_output(likelihood: str, model: Any) -> None:
    """Nothing, when the decoder of `model` says what the likelihood reads.

    Raises:
        ValueError: it says something else; the message names what would do.
    """
    output = getattr(model, "output", "logits")
    if output not in OUTPUTS[likelihood]:
        raise ValueError(
            f"objective.likelihood={likelihood!r} reads {' or '.join(OUTPUTS[likelihood])} of the decoder, and "
            f"model.output={output!r}; set --model.output {OUTPUTS[likelihood][0]}"
        )


def nll(likelihood: str, parameters: Tensor, targets: Tensor, sigma: float) -> Tensor:
    """Negative log probability (density, if gaussian) of images, (B,).

    Args:
        likelihood: a key of `OUTPUTS`.
        parameters: (B, P, H, W), what the decoder says.
        targets: (B, C, H, W) in [0, 1].
        sigma: standard deviation of a gaussian whose decoder names none.
    """
    match likelihood:
        case "bernoulli":
            return bernoulli_nll(parameters, targets)
        case "logistic-mixture":
            return logistic_mixture_nll(parameters, targets)
    if parameters.shape == targets.shape:
        return gaussian_nll(torch.sigmoid(parameters), targets, sigma)
    logits, log_sigma = parameters.chunk(2, dim=1)
    return scaled_gaussian_nll(torch.sigmoid(logits), log_sigma, targets)


def bernoulli_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log probability of images whose pixels are 1 with probability sigmoid(logits), in nats: (B,).

    Args:
        logits: (B, C, H, W), unbounded.
        targets: (B, C, H, W) in {0, 1}; greys in between give a cross-entropy that is no likelihood.
    """
    each: Tensor = _BernoulliNLL.apply(logits, targets)
    return each.flatten(1).sum(dim=1)


class _BernoulliNLL(torch.autograd.Function):
    """-log p of each pixel, (B, C, H, W): torch's own takes log1p, which costs a CPU most of a step of many samples."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        # softplus without overflow; 1 + exp(-|x|) is rounded to 6e-8, as what it is summed with
        softplus = logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0))
        return softplus.sub_(logits * targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        return (torch.sigmoid(logits) - targets) * gradient, None


def gaussian_nll(means: Tensor, targets: Tensor, sigma: float) -> Tensor:
    """Negative log density of images whose pixels are N(mean, sigma), in nats, may be negative: (B,).

    Args:
        means: (B, C, H, W) in [0, 1].
        targets: (B, C, H, W) in [0, 1].
        sigma: on the same scale, above 0.
    """
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((targets - means) / sigma).square() + constant).flatten(1).sum(dim=1)


def scaled_gaussian_nll(means: Tensor, log_sigma: Tensor, targets: Tensor) -> Tensor:
    """The same with a log standard deviation for each pixel, cut off below `LEAST_LOG_SIGMA`.

    Args:
        means: (B, C, H, W) in [0, 1].
        log_sigma: (B, C, H, W), unbounded.
        targets: (B, C, H, W) in [0, 1].
    """
    log_sigma = log_sigma.clamp(min=LEAST_LOG_SIGMA)
    residuals = (targets - means) * torch.exp(-log_sigma)
    return (0.5 * residuals.square() + log_sigma + 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)


def logistic_mixture_nll(parameters: Tensor, targets: Tensor) -> Tensor:
    """Negative log probability of images of 256 levels under a mixture of discretised logistics, in nats: (B,).

    A level has the mass of the mixture between its neighbours' midpoints, the first and the last all that
    is beyond (Salimans et al. 2017, arXiv:1701.05517, equation 2). Channels of a pixel share the choice of
    the component, and are independent given it.

    Args:
        parameters: (B, P, H, W), see `models.pixel_distributions.mixture_parts`.
        targets: (B, C, H, W) in [0, 1], multiples of 1/255.
    """
    weights, means, log_scales = mixture_parts(parameters)
    log_scales = log_scales.clamp(min=LEAST_LOG_SCALE)
    centred = (2 * targets - 1).unsqueeze(1) - means
    upper = (centred + 1 / 255) * torch.exp(-log_scales)
    lower = (centred - 1 / 255) * torch.exp(-log_scales)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no difference of near-equal numbers
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 / 255 * torch.exp(-log_scales)))
    levels = targets.unsqueeze(1)
    log_mass = torch.where(levels <= 0, F.logsigmoid(upper), torch.where(levels >= 1, F.logsigmoid(-lower), inside))
    mixed = torch.logsumexp(weights.log_softmax(dim=1) + log_mass.sum(dim=2), dim=1)
    return -mixed.flatten(1).sum(dim=1)

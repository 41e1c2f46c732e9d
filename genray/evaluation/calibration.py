"""Whether a classifier is right as often as it says.

Guo et al. 2017, arXiv:1706.04599, section 2.
"""

import torch
from torch import Tensor

from genray.errors import ProtocolError
from genray.streams import generator

NUM_BINS = 15
NUM_RESAMPLES = 50


def calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error in [0, 1]: the gap of confidence and accuracy, over bins of equal width.

    Args:
        probabilities: (N, K), rows that sum to 1.
        labels: (N,), int64.
        num_bins: of the confidence, each without its lower and with its upper end.

    Raises:
        ProtocolError: N is 0.
    """
    if len(labels) == 0:
        raise ProtocolError("calibration error of 0 images is not defined; choose a split that has some")
    return _error(*_confidence(probabilities, labels), num_bins)


def calibration_errors(
    probabilities: Tensor, labels: Tensor, num_bins: int = NUM_BINS, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """The error, and its standard deviation over bootstrap resamples of the images, always the same ones."""
    value = calibration_error(probabilities, labels, num_bins)
    confidence, right = _confidence(probabilities, labels)
    source = generator(0, "calibration/resamples")
    found = []
    for _ in range(num_resamples):
        chosen = torch.randint(len(labels), (len(labels),), generator=source)
        found.append(_error(confidence[chosen], right[chosen], num_bins))
    return value, float(torch.tensor(found, dtype=torch.float64).std())


def _confidence(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    confidence, predicted = probabilities.max(1)
    return confidence.cpu(), (predicted == labels).double().cpu()


def _error(confidence: Tensor, right: Tensor, num_bins: int) -> float:
    edges = torch.linspace(0, 1, num_bins + 1, dtype=confidence.dtype)[1:-1]
    gaps = torch.zeros(num_bins, dtype=torch.float64)
    gaps.index_add_(0, torch.bucketize(confidence, edges), confidence.double() - right)
    return float(gaps.abs().sum() / len(right))

"""Whether a classifier is right as often as it says.

Guo et al. 2017, arXiv:1706.04599, section 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genray.errors import ProtocolError
from genray.evaluation.accuracy import NUM_RESAMPLES
from genray.streams import generator

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Images by confidence, in bins of equal width, each without its lower and with its upper end."""

    count: Tensor
    """(bins,), float64."""
    confidence: Tensor
    """(bins,), mean; NaN where a bin is empty."""
    accuracy: Tensor
    """(bins,), share of right ones; NaN where a bin is empty."""

    @property
    def error(self) -> float:
        """Mean gap of confidence and accuracy over images."""
        gaps = (self.confidence - self.accuracy).abs().nan_to_num() * self.count
        return float(gaps.sum() / self.count.sum())


def reliability(probabilities: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> Reliability:
    """Confidence and accuracy of each bin; arguments and errors as for `calibration_error`."""
    if len(labels) == 0:
        raise ProtocolError("calibration error of 0 images is not defined; choose a split that has some")
    return _binned(*_confidence(probabilities, labels), num_bins)


def calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error in [0, 1]: the gap of confidence and accuracy, over bins of equal width.

    Args:
        probabilities: (N, K), rows that sum to 1.
        labels: (N,), int64.
        num_bins: of the confidence, each without its lower and with its upper end.

    Raises:
        ProtocolError: N is 0.
    """
    return reliability(probabilities, labels, num_bins).error


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
        found.append(_binned(confidence[chosen], right[chosen], num_bins).error)
    return value, float(torch.tensor(found, dtype=torch.float64).std())


def _confidence(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    confidence, predicted = probabilities.max(1)
    return confidence.cpu(), (predicted == labels).double().cpu()


def _binned(confidence: Tensor, right: Tensor, num_bins: int) -> Reliability:
    edges = torch.linspace(0, 1, num_bins + 1, dtype=confidence.dtype)[1:-1]
    bins = torch.bucketize(confidence, edges)
    count = torch.bincount(bins, minlength=num_bins).double()
    sums = (torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, v) for v in (confidence.double(), right))
    mean_confidence, accuracy = (total / count for total in sums)
    return Reliability(count, mean_confidence, accuracy)

"""What can be measured of a snapshot, by name, and which way is better."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """How to read the values of one metric."""

    direction: Literal["max", "min"]
    unit: str
    summary: str
    """What it says, in a line, with its paper."""


METRICS: dict[str, Metric] = {
    "fid": Metric("min", "", "Fréchet distance of features, fakes to reals (Heusel et al. 2017, arXiv:1706.08500)"),
    "kid": Metric("min", "", "unbiased squared kernel MMD of features (Bińkowski et al. 2018, arXiv:1801.01401)"),
    "elbo": Metric("max", "nats", "lower bound of log p(image), mean per image (Kingma and Welling 2013, 1312.6114)"),
    "accuracy": Metric("max", "", "share of images whose class is named right"),
    "recall": Metric("max", "", "the same share, taken per class and averaged over the classes that occur"),
}
"""By the name that scores, metric keys (`eval/NAME`) and protocols carry."""

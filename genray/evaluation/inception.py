"""The Inception Score: fakes of which each is clearly of one class, and all together of many.

Salimans et al. 2016, arXiv:1606.03498. With another network than the literature's Inception it is
the same formula and another number: the protocol names the network.
"""

import torch
from torch import Tensor

from genray.errors import ProtocolError

NUM_SPLITS = 10


def inception_score(probabilities: Tensor) -> float:
    """exp(mean over images of KL(p(class | image) || p(class))): from 1 to the number of classes.

    Args:
        probabilities: (N, K), rows that sum to 1; computed in float64.

    Raises:
        ProtocolError: no images, or a probability is not finite.
    """
    exact = probabilities.double()
    if len(exact) == 0 or not bool(exact.isfinite().all()):
        raise ProtocolError(
            f"an Inception Score needs finite class probabilities of at least 1 image, got {tuple(exact.shape)} "
            f"with {int((~exact.isfinite()).sum())} that are not finite; take another extractor or more images"
        )
    marginal = exact.mean(0)
    conditional = torch.special.xlogy(exact, exact).sum(1).mean()
    return float((conditional - torch.special.xlogy(marginal, marginal).sum()).exp())


def inception_scores(probabilities: Tensor, num_splits: int = NUM_SPLITS) -> list[float]:
    """The score of `num_splits` equal parts, in order, as the paper takes it; their mean is its value.

    Raises:
        ProtocolError: fewer images than parts.
    """
    if len(probabilities) < num_splits:
        raise ProtocolError(
            f"an Inception Score over {num_splits} splits needs at least {num_splits} images, "
            f"got {len(probabilities)}; raise eval.num_samples"
        )
    return [inception_score(part) for part in probabilities.tensor_split(num_splits)]

"""What logits cost: the forms of adversarial losses, as functions of one logit or of one pair.

Goodfellow et al. 2014, arXiv:1406.2661 (non-saturating); Lim and Ye 2017, arXiv:1705.02894 (hinge); Mao et al. 2017,
arXiv:1611.04076 (least-squares, with targets -1 and 1); Arjovsky et al. 2017, arXiv:1701.07875 (wasserstein);
Jolicoeur-Martineau 2018, arXiv:1807.00734, as Huang et al. 2024, arXiv:2501.05441, use it (relativistic).
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Form = Literal["non-saturating", "hinge", "least-squares", "wasserstein", "relativistic"]


def margin_loss(form: Form, margins: Tensor) -> Tensor:
    """Loss of the discriminator for how far each sample lies on its right side: (B,).

    Args:
        form: relativistic is non-saturating, of other margins.
        margins: (B,), unbounded: logits of reals, the negatives of those of fakes; relativistic: logit of a real
            minus that of its fake.
    """
    match form:
        case "non-saturating" | "relativistic":
            return F.softplus(-margins)
        case "hinge":
            return F.relu(1 - margins)
        case "least-squares":
            return 0.5 * (1 - margins).square()
        case "wasserstein":
            return -margins


def generator_loss(form: Form, margins: Tensor) -> Tensor:
    """Loss of the generator: (B,).

    Args:
        form: hinge and wasserstein are linear here.
        margins: (B,), unbounded: logits of fakes; relativistic: logit of a fake minus that of its real.
    """
    return -margins if form in ("hinge", "wasserstein") else margin_loss(form, margins)


def split_judgement(judgement: Tensor | tuple[Tensor, Tensor], samples: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (B,) of what a discriminator gave of samples, and those of its auxiliary classifier, (B, K) or None."""
    if isinstance(judgement, Tensor):
        return one_per_sample(judgement, samples), None
    logits, class_logits = judgement
    return one_per_sample(logits, samples), class_logits.float()


def one_per_sample(logits: Tensor, samples: Tensor) -> Tensor:
    """`logits` in fp32, refused unless (B,): (B, 1) would pair every real with every fake, silently."""
    if logits.shape != samples.shape[:1]:
        raise ValueError(
            f"logits must have shape (B,) = ({len(samples)},), got {tuple(logits.shape)}; "
            "end the discriminator with .flatten()"
        )
    return logits.float()

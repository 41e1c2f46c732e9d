"""Which pixels speak for a class, through captum."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genray.sampling import to_float

IG_STEPS = 32
"""Points of the path between a black image and the image."""


def grad_cam(classifier: Any, images: Tensor, targets: Tensor) -> Tensor:
    """How much each place speaks for the class `targets`: (N, H, W) in [0, 1], the most telling place of an image 1.

    Gradients of the class's logit, averaged over space, weigh the maps of the layer `classifier.map_layer`;
    what is positive is enlarged to the image's size (Selvaraju et al. 2017, arXiv:1610.02391). All 0
    where nothing speaks for the class.

    Args:
        classifier: images in [-1, 1] to logits, in eval mode.
        images: uint8 (N, C, H, W).
        targets: (N,), int64.
    """
    from captum.attr import LayerGradCam

    inputs, targets = _prepared(classifier, images, targets)
    maps = LayerGradCam(classifier, classifier.map_layer).attribute(inputs, targets, relu_attributions=True)
    maps = F.interpolate(maps.detach().float(), size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)).cpu()


def integrated_gradients(classifier: Any, images: Tensor, targets: Tensor) -> Tensor:
    """What each number of an image adds to the logit of the class `targets`: (N, C, H, W), of any sign.

    Gradients along the straight line from a black image (Sundararajan et al. 2017, arXiv:1703.01365): they
    add up to the image's logit minus the black image's. Arguments as for `grad_cam`.
    """
    from captum.attr import IntegratedGradients

    inputs, targets = _prepared(classifier, images, targets)
    black = torch.full_like(inputs, -1)
    found: Tensor = IntegratedGradients(classifier).attribute(
        inputs, baselines=black, target=targets, n_steps=IG_STEPS, internal_batch_size=256
    )
    return found.detach().float().cpu()


def _prepared(classifier: Any, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    warnings.filterwarnings("ignore", message=".*required_grads has not been set", module="captum")
    device = next(classifier.parameters()).device
    return to_float(images.to(device)).requires_grad_(), targets.to(device)

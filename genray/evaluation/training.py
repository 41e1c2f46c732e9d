"""The classification accuracy score: what a classifier learns from fakes alone, it must know of reals.

Ravuri and Vinyals 2019, arXiv:1905.10887; the reverse, a classifier of reals that looks at fakes:
Shmelkov et al. 2018, arXiv:1807.09499 (GAN-test).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.errors import ProtocolError
from genray.models.resnet import ResNetClassifier
from genray.sampling import to_float
from genray.streams import derive_seed, generator

BATCH_SIZE = 128
LR = 2e-3
WIDTH = 16


def train_classifier(
    images: Tensor, labels: Tensor, num_classes: int, seed: int, num_steps: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """A small residual network, in eval mode, after `num_steps` batches of AdamW with a falling learning rate.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,), int64, below `num_classes`.
        num_classes: at least 2.
        seed: of the weights and the order of the images.
        num_steps: batches of `BATCH_SIZE`.
        device: to train on.

    Raises:
        ProtocolError: fewer than 2 images or classes.
    """
    if len(images) < 2 or num_classes < 2:
        raise ProtocolError(
            f"a classifier cannot be trained on {len(images)} images of {num_classes} classes; take at least 2 of each"
        )
    channels, height, width = images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "cas/weights"))
        module = ResNetClassifier(width=WIDTH).build((channels, height, width), num_classes)["classifier"].to(device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    module.train()
    for step in range(num_steps):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator(seed, "cas/order", step))
        logits = module(to_float(images[chosen].to(device)))
        loss = F.cross_entropy(logits, labels[chosen].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return module.eval().requires_grad_(False)


@torch.no_grad()
def share_right(module: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """Share of `images`, uint8 (N, C, H, W) with N at least 1, that the classifier calls by their `labels` (N,)."""
    device = next(module.parameters()).device
    starts = range(0, len(images), batch_size)
    right = [
        (module(to_float(images[s : s + batch_size].to(device))).argmax(1).cpu() == labels[s : s + batch_size]).sum()
        for s in starts
    ]
    return int(sum(right)) / len(images)

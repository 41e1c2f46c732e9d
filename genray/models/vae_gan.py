"""A convolutional VAE beside a discriminator of images: VAE-GAN (Larsen et al. 2016, arXiv:1512.09300)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from genray.models.dcgan import DCGAN, Discriminator
from genray.models.knobs import at_least, num_labels
from genray.models.vae import ConvVAE


@dataclass(frozen=True, kw_only=True)
class ConvVAEGAN(ConvVAE):
    """The same, and the discriminator of a DCGAN, which is told the labels too if conditional.

    What the VAE shall get right of an image are the features of that network's last map.
    """

    modules: ClassVar[tuple[str, ...]] = ("vae", "discriminator")
    judges: ClassVar[str] = "images"

    discriminator_width: int = 32
    """Channels of the discriminator next to the image; they double with each halving, up to `max_width`."""
    discriminator_norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution of the discriminator but the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "discriminator_width")

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` and `discriminator` for images of (C, H, W)."""
        knobs = DCGAN(
            width=self.discriminator_width,
            max_width=self.max_width,
            min_base=2,
            conditional=self.conditional,
            discriminator_norm=self.discriminator_norm,
        )
        judge = Discriminator(knobs, image_shape, num_labels(self.conditional, num_classes))
        return super().build(image_shape, num_classes) | {"discriminator": judge}

"""A classifier whose trunk is the encoder of a convolutional VAE, up to the layer that gives the posterior."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from torch import nn

from genray.models.knobs import check_classes
from genray.models.trunk import TrunkClassifier
from genray.models.vae import ConvVAE


@dataclass(frozen=True, kw_only=True)
class ConvVAEClassifier:
    """Its weights are those of a `ConvVAE` that has the same knobs and is not told labels."""

    modules: ClassVar[tuple[str, ...]] = ("classifier",)

    width: int = 32
    """As the VAE's."""
    max_width: int = 256
    """As the VAE's."""
    norm: Literal["batch", "none"] = "batch"
    """As the VAE's."""

    def __post_init__(self) -> None:
        self.vae()

    def vae(self) -> ConvVAE:
        """The VAE with these knobs."""
        return ConvVAE(**{f.name: getattr(self, f.name) for f in fields(self)})

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, where the VAE does."""
        self.vae().check(image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `classifier` of images (C, H, W) into `num_classes` classes.

        Raises:
            ValueError: fewer than two classes.
        """
        check_classes("conv-vae-classifier", num_classes)
        vae: Any = self.vae().build(image_shape, num_classes)["vae"]
        *layers, flatten, posterior = vae.encoder
        head = nn.Linear(posterior.in_features, num_classes)
        return {"classifier": TrunkClassifier("encoder", nn.Sequential(*layers), flatten, head)}

"""Architectures by name.

A model is a frozen dataclass of its knobs that checks an image shape and builds the networks of a
run. Its file imports torch, the standard library and, by `from genray.models.NAME import a, b`, its
siblings, and nothing else: a registered model carries copies of these files, joined to one by
`standalone.py`, and opens where genray is not installed.
"""

from typing import Protocol

from torch import nn

from genray.models.biggan import BigGAN
from genray.models.code_transformer import CodeTransformer
from genray.models.dcgan import DCGAN, DCGANClassifier
from genray.models.hierarchical_vae import HierarchicalVAE
from genray.models.latent_flow import LatentFlow
from genray.models.r3gan import R3GAN
from genray.models.resnet import ResNetClassifier
from genray.models.sngan import SNGAN, SNGANClassifier
from genray.models.stylegan2 import StyleGAN2
from genray.models.tokenizer import AdversarialTokenizer, Tokenizer
from genray.models.torchvision_resnet import TorchvisionResNet
from genray.models.vae import MLPVAE, AdversarialVAE, ConvVAE
from genray.models.vae_classifier import ConvVAEClassifier
from genray.models.vae_gan import ConvVAEGAN


class Model(Protocol):
    """What every entry of `MODELS` is an instance of."""

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when such images cannot be modelled.

        Args:
            image_shape: (C, H, W).
        """

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """Freshly initialised networks by the name of their phase, on the CPU.

        Initial weights come from torch's global generator, which the caller seeds.
        """


MODELS: dict[str, type[Model]] = {
    "dcgan": DCGAN,
    "sngan": SNGAN,
    "biggan": BigGAN,
    "r3gan": R3GAN,
    "stylegan2": StyleGAN2,
    "conv-vae": ConvVAE,
    "mlp-vae": MLPVAE,
    "adversarial-vae": AdversarialVAE,
    "conv-vae-gan": ConvVAEGAN,
    "hierarchical-vae": HierarchicalVAE,
    "tokenizer": Tokenizer,
    "adversarial-tokenizer": AdversarialTokenizer,
    "code-transformer": CodeTransformer,
    "latent-flow": LatentFlow,
    "dcgan-classifier": DCGANClassifier,
    "sngan-classifier": SNGANClassifier,
    "conv-vae-classifier": ConvVAEClassifier,
    "resnet-classifier": ResNetClassifier,
    "torchvision-resnet": TorchvisionResNet,
}

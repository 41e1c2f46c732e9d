"""Small snapshots on the 8 x 8 digits, with random weights, for the tests of evaluation."""

import torch

from genray import snapshot
from genray.config import Config, Data, Optim, Train
from genray.models.dcgan import DCGAN
from genray.models.resnet import ResNetClassifier
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2
from genray.models.tokenizer import Tokenizer
from genray.models.vae import MLPVAE
from genray.objectives import classifier_of
from genray.objectives.classification import Classification
from genray.objectives.elbo import ELBO
from genray.objectives.gan import GAN
from genray.objectives.tokenizer import Tokenization

DIGITS = tuple("0123456789")


def save(directory, model, objective, *, seed=0, data=None, classes=DIGITS, change=None, data_digest="0" * 64):
    """Saves a snapshot of fresh weights, after `change(module)`, and gives its directory back."""
    config = Config(
        data=data or Data(name="digits"), model=model, objective=objective, optim=Optim(), train=Train(sample_every=0)
    )
    torch.manual_seed(seed)
    built = model.build(config.data.image_shape, len(classes))
    module = built[objective.product]
    if change is not None:
        with torch.no_grad():
            change(module)
    weights = module.state_dict()
    if beside := classifier_of(objective):
        weights |= {f"{beside}/{k}": v for k, v in built[beside].state_dict().items()}
    snapshot.save(directory, weights, config, step=1, samples_seen=64, classes=classes, data_digest=data_digest)
    return directory


def save_classifier(directory, **options):
    return save(directory, ResNetClassifier(width=8, num_stages=2), Classification(), **options)


def save_generator(directory, *, conditional=False, **options):
    return save(directory, DCGAN(latent_dim=8, width=8, conditional=conditional), GAN(), **options)


def save_acgan(directory, **options):
    model = DCGAN(latent_dim=8, width=8, conditional=True, conditioning="auxiliary-classifier")
    return save(directory, model, GAN(class_loss=1.0), **options)


def save_tokenizer(directory, quantizer="vq", **options):
    model = Tokenizer(quantizer=quantizer, num_codes=16, code_dim=4, width=8, num_downsamplings=1)
    return save(directory, model, Tokenization(), **options)


def save_vae(directory, objective=None, **options):
    return save(directory, MLPVAE(latent_dim=3, hidden=16), objective or ELBO(), **options)


def save_stylegan2(directory, **options):
    """With mean styles that truncation shows."""
    model = StyleGAN2(latent_dim=4, style_dim=8, width=4, max_width=8, conditional=True)
    return save(directory, model, GAN(), change=lambda module: module.mean_style.normal_(), **options)


def save_sngan(directory, **options):
    model = SNGAN(latent_dim=4, width=4, max_width=8, conditional=True, spectral="both")
    return save(directory, model, GAN(), **options)

"""One tiny GAN run for each thing that a GAN can have: what two ranks and a resume are tested with."""

from conftest import tiny_config

from genray.anneal import Anneal
from genray.config import Config, Optim
from genray.models.biggan import BigGAN
from genray.models.dcgan import DCGAN
from genray.models.r3gan import R3GAN
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2
from genray.objectives.gan import GAN

CLASSIFYING = DCGAN(
    latent_dim=8,
    width=8,
    generator_norm="none",
    discriminator_norm="none",
    conditional=True,
    conditioning="auxiliary-classifier",
)
AUGMENTED = ("color", "translation", "cutout")
_OBJECTIVES = {
    "hinge-gp": GAN(form="hinge", gradient_penalty=10.0),
    "wasserstein-gp-every-2": GAN(form="wasserstein", gradient_penalty=10.0, num_discriminator_steps=2),
    "least-squares-r2": GAN(form="least-squares", gamma=1.0, penalised="fakes"),
    "relativistic-r1-r2": GAN(form="relativistic", gamma=1.0, penalised="both"),
    "relativistic-gp": GAN(form="relativistic", gradient_penalty=10.0),
    "augmented-half": GAN(form="relativistic", augment=AUGMENTED, augment_probability=0.5),
    "lecam-consistent": GAN(form="hinge", lecam=0.3, consistency=10.0, gamma=1.0),
    "relativistic-lecam-consistent": GAN(form="relativistic", lecam=0.3, consistency=10.0, gamma=1.0),
    "adaptive": GAN(gamma=1.0, augment=AUGMENTED, augment_target=0.1, augment_samples=100),
}
CASES: dict[str, Config] = {name: tiny_config(objective=objective) for name, objective in _OBJECTIVES.items()} | {
    "sngan": tiny_config(
        model=SNGAN(
            latent_dim=8, width=8, discriminator_width=8, max_width=8, conditional=True, attention=True, spectral="both"
        ),
        objective=GAN(form="hinge", num_discriminator_steps=2),
    ),
    "biggan": tiny_config(
        model=BigGAN(latent_dim=8, label_dim=8, width=8, discriminator_width=8, max_width=8, conditional=True),
        objective=GAN(form="hinge", num_discriminator_steps=2),
    ),
    "r3gan": tiny_config(
        model=R3GAN(latent_dim=8, width=8, max_width=8, group_width=4, num_blocks=1, conditional=True),
        objective=GAN(form="relativistic", gamma=1.0, penalised="both"),
    ),
    "stylegan2": tiny_config(
        model=StyleGAN2(latent_dim=8, style_dim=8, width=8, max_width=8, conditional=True),
        objective=GAN(gamma=1.0, augment=AUGMENTED, augment_target=0.1, augment_samples=100, path_length=2.0),
    ),
    "acgan": tiny_config(model=CLASSIFYING, objective=GAN(class_loss=0.5, gamma=1.0, gradient_penalty=10.0)),
    "acgan-relativistic": tiny_config(
        model=CLASSIFYING, objective=GAN(form="relativistic", class_loss=0.5, consistency=10.0)
    ),
    "annealed": tiny_config(
        objective=GAN(form="relativistic", gamma=1.0, penalised="both", augment=AUGMENTED, augment_probability=0.0),
        anneal=Anneal(to=("objective.gamma=0.1", "objective.augment_probability=0.8", "optim.betas.1=0.9"), samples=96),
    ),
}
INVARIANT = tuple(name for name in CASES if name not in ("sngan", "biggan"))
"""Cases without statistics of a rank's share of the batch."""
WIDE: dict[str, Config] = {
    "sngan": tiny_config(
        model=SNGAN(latent_dim=16, width=16, discriminator_width=16, max_width=16, conditional=True),
        objective=GAN(form="hinge"),
        optim=Optim(lr=2e-3, betas=(0.0, 0.9)),
    ),
    "biggan": tiny_config(
        model=BigGAN(latent_dim=16, label_dim=16, width=16, discriminator_width=16, max_width=16, conditional=True),
        objective=GAN(form="hinge"),
        optim=Optim(lr=2e-3, betas=(0.0, 0.9)),
    ),
    "r3gan": tiny_config(
        model=R3GAN(latent_dim=16, width=16, max_width=32, group_width=8, num_blocks=1, conditional=True),
        objective=GAN(form="relativistic", gamma=0.5, penalised="both"),
        optim=Optim(lr=2e-3, betas=(0.0, 0.9)),
    ),
    "stylegan2": tiny_config(
        model=StyleGAN2(latent_dim=16, style_dim=16, width=16, max_width=32, conditional=True),
        objective=GAN(gamma=0.1, augment=("color", "translation"), augment_target=0.6, augment_samples=20_000),
        optim=Optim(lr=5e-3, betas=(0.0, 0.99)),
    ),
    "wasserstein-gp": tiny_config(
        model=DCGAN(latent_dim=16, width=16, generator_norm="none", discriminator_norm="none"),
        objective=GAN(form="wasserstein", gradient_penalty=10.0),
        optim=Optim(lr=2e-3, betas=(0.0, 0.9)),
    ),
    "least-squares": tiny_config(
        model=DCGAN(latent_dim=16, width=16, generator_norm="none", discriminator_norm="none"),
        objective=GAN(form="least-squares", augment=("translation",), augment_probability=0.3),
        optim=Optim(lr=2e-3, betas=(0.5, 0.99)),
    ),
}
"""Runs that learn the digits in seconds."""

"""One tiny GAN run for each thing that a GAN can have: what two ranks and a resume are tested with."""

from conftest import tiny_config

from genray.anneal import Anneal
from genray.config import Config
from genray.objectives.gan import GAN

AUGMENTED = ("color", "translation", "cutout")
_OBJECTIVES = {
    "hinge-gp": GAN(form="hinge", gradient_penalty=10.0),
    "wasserstein-gp-every-2": GAN(form="wasserstein", gradient_penalty=10.0, num_discriminator_steps=2),
    "least-squares-r2": GAN(form="least-squares", gamma=1.0, penalised="fakes"),
    "relativistic-r1-r2": GAN(form="relativistic", gamma=1.0, penalised="both"),
    "relativistic-gp": GAN(form="relativistic", gradient_penalty=10.0),
    "augmented-half": GAN(form="relativistic", augment=AUGMENTED, augment_probability=0.5),
    "adaptive": GAN(gamma=1.0, augment=AUGMENTED, augment_target=0.1, augment_samples=100),
}
CASES: dict[str, Config] = {name: tiny_config(objective=objective) for name, objective in _OBJECTIVES.items()} | {
    "annealed": tiny_config(
        objective=GAN(form="relativistic", gamma=1.0, penalised="both", augment=AUGMENTED, augment_probability=0.0),
        anneal=Anneal(to=("objective.gamma=0.1", "objective.augment_probability=0.8", "optim.betas.1=0.9"), samples=96),
    ),
}

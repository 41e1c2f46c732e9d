"""Objectives by name: the losses of all phases, and nothing else."""

from genray.objectives.base import Batch, Networks, Objective, Phase, Stateful
from genray.objectives.classification import Classification
from genray.objectives.elbo import ELBO
from genray.objectives.gan import GAN

OBJECTIVES: dict[str, type[Objective]] = {"gan": GAN, "elbo": ELBO, "classification": Classification}

__all__ = ["OBJECTIVES", "Batch", "Networks", "Objective", "Phase", "Stateful"]

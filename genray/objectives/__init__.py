"""Objectives by name: the losses of all phases, and nothing else."""

from genray.objectives.adversarial_tokenizer import AdversarialTokenization
from genray.objectives.base import Batch, Classifying, Networks, Objective, Phase, Stateful, classifier_of
from genray.objectives.classification import Classification
from genray.objectives.code_prediction import CodePrediction
from genray.objectives.elbo import ELBO
from genray.objectives.flow_matching import FlowMatching
from genray.objectives.gan import GAN
from genray.objectives.latent_adversarial import LatentAdversarial
from genray.objectives.rae import RAE
from genray.objectives.tokenizer import Tokenization
from genray.objectives.vae_gan import VAEGAN

OBJECTIVES: dict[str, type[Objective]] = {
    "gan": GAN,
    "elbo": ELBO,
    "classification": Classification,
    "latent-adversarial": LatentAdversarial,
    "rae": RAE,
    "vae-gan": VAEGAN,
    "tokenization": Tokenization,
    "adversarial-tokenization": AdversarialTokenization,
    "code-prediction": CodePrediction,
    "flow-matching": FlowMatching,
}

__all__ = ["OBJECTIVES", "Batch", "Classifying", "Networks", "Objective", "Phase", "Stateful", "classifier_of"]

"""The search space that ships with each preset: what decides whether it works."""

from genray.space import Domain, Space

_GAN: Space = {
    "optim.lr": Domain("log", (1e-4, 5e-3)),
    "optim.discriminator_lr": Domain("log", (1e-4, 5e-3)),
    "optim.betas.0": Domain("choice", (0.0, 0.5, 0.9)),
    "objective.num_discriminator_steps": Domain("int", (1, 3)),
}
_PENALISED: Space = _GAN | {"objective.gamma": Domain("log", (0.01, 10.0))}
# a penalty per sample and batch norm in the discriminator do not go together
_NORM_OR_PENALTY: Space = _GAN | {
    "model.discriminator_norm": Domain("choice", ("batch", "none")),
    "objective.gamma": Domain("log", (0.01, 10.0), when=("model.discriminator_norm", "none")),
}
_AUXILIARY: Space = _NORM_OR_PENALTY | {"objective.class_loss": Domain("log", (0.1, 2.0))}
_VAE: Space = {
    "optim.lr": Domain("log", (1e-4, 1e-2)),
    "objective.beta": Domain("log", (0.1, 10.0)),
    "model.latent_dim": Domain("choice", (8, 16, 32, 64)),
    "train.global_batch_size": Domain("choice", (32, 64, 128)),
}
_BOUND: Space = {key: domain for key, domain in _VAE.items() if key != "objective.beta"}
_RAE: Space = {
    "optim.lr": Domain("log", (1e-4, 1e-2)),
    "objective.beta": Domain("log", (0.01, 10.0)),
    "objective.decoder_l2": Domain("log", (1e-4, 1.0)),
    "model.latent_dim": Domain("choice", (8, 16, 32, 64)),
}
_VAE_GAN: Space = {
    "optim.lr": Domain("log", (1e-4, 3e-3)),
    "optim.discriminator_lr": Domain("log", (1e-4, 3e-3)),
    "objective.gamma": Domain("log", (1e-3, 1.0)),
    "objective.beta": Domain("log", (0.01, 3.0)),
}
_LATENT_ADVERSARIAL: Space = {
    "optim.lr": Domain("log", (1e-4, 1e-2)),
    "optim.discriminator_lr": Domain("log", (1e-4, 1e-2)),
    "objective.gamma": Domain("log", (0.5, 50.0)),
}
_HIERARCHICAL: Space = {
    "optim.lr": Domain("log", (1e-4, 3e-3)),
    "model.latent_channels": Domain("choice", (4, 8, 16)),
    "model.blocks_per_level": Domain("choice", (1, 2, 4)),
}
_VQ: Space = {
    "optim.lr": Domain("log", (1e-4, 3e-3)),
    "objective.sigma": Domain("log", (0.03, 0.3)),
    "model.num_codes": Domain("choice", (64, 256, 1024)),
}
_ADVERSARIAL: Space = {
    "optim.lr": Domain("log", (1e-4, 3e-3)),
    "objective.adversarial": Domain("log", (0.1, 1.0)),
}
_FSQ: Space = {
    "optim.lr": Domain("log", (1e-4, 3e-3)),
    "objective.sigma": Domain("log", (0.03, 0.3)),
    "model.width": Domain("choice", (32, 64, 128)),
}
_KL: Space = {
    "optim.lr": Domain("log", (1e-4, 3e-3)),
    "objective.beta": Domain("log", (1e-4, 1.0)),
    "model.code_dim": Domain("choice", (2, 4, 8, 16)),
}
_CODES: Space = {
    "optim.lr": Domain("log", (3e-4, 1e-2)),
    "optim.weight_decay": Domain("log", (1e-3, 0.3)),
    "objective.corruption": Domain("uniform", (0.0, 0.4)),
}
_FLOW: Space = {
    "optim.lr": Domain("log", (3e-4, 1e-2)),
    "optim.weight_decay": Domain("log", (1e-3, 0.3)),
    "objective.time_spread": Domain("uniform", (0.5, 2.0)),
}
_CLASSIFIER: Space = {
    "optim.lr": Domain("log", (1e-4, 1e-2)),
    "optim.weight_decay": Domain("log", (1e-3, 0.3)),
    "train.global_batch_size": Domain("choice", (32, 64, 128)),
}

SPACES: dict[str, Space] = {
    "digits-dcgan": _NORM_OR_PENALTY,
    "digits-acgan": _AUXILIARY,
    "digits-vae": _VAE,
    "digits-classifier": _CLASSIFIER,
    "digits-r3gan": _PENALISED,
    "mnist-dcgan": _PENALISED,
    "mnist-sngan": _GAN,
    "mnist-r3gan": _PENALISED,
    "mnist-stylegan2": _PENALISED,
    "mnist-vae": _VAE,
    "mnist-mlp-vae": _VAE,
    "mnist-iwae": _BOUND,
    "mnist-vampprior": _BOUND,
    "mnist-rae": _RAE,
    "digits-hierarchical-vae": _HIERARCHICAL,
    "cifar10-hierarchical-vae": _HIERARCHICAL,
    "digits-vae-gan": _VAE_GAN,
    "digits-factor-vae": _LATENT_ADVERSARIAL,
    "digits-adversarial-autoencoder": _LATENT_ADVERSARIAL,
    "digits-tokenizer": _VQ,
    "mnist-tokenizer": _VQ,
    "cifar10-tokenizer": _FSQ,
    "digits-kl-tokenizer": _KL,
    "mnist-kl-tokenizer": _KL,
    "cifar10-kl-tokenizer": _KL | _ADVERSARIAL,
    "mnist-adversarial-tokenizer": _ADVERSARIAL,
    "digits-code-transformer": _CODES,
    "mnist-code-transformer": _CODES,
    "digits-latent-flow": _FLOW,
    "mnist-latent-flow": _FLOW,
    "mnist-classifier": _CLASSIFIER,
    "digits-dcgan-classifier": _CLASSIFIER,
    "digits-vae-classifier": _CLASSIFIER,
    "mnist-dcgan-classifier": _CLASSIFIER,
    "mnist-sngan-classifier": _CLASSIFIER,
    "mnist-vae-classifier": _CLASSIFIER,
    "cifar10-resnet18": _CLASSIFIER,
    "folder-resnet50": _CLASSIFIER,
    "cifar10-dcgan": _NORM_OR_PENALTY,
    "cifar10-sngan": _GAN,
    "cifar10-biggan": _GAN,
    "cifar10-r3gan": _PENALISED,
    "cifar10-stylegan2": _PENALISED,
    "folder-dcgan": _NORM_OR_PENALTY,
}

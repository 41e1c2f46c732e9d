"""VAE-GAN: whose loss reaches which weights, against the three losses of the paper one by one; short runs on digits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_autoencoder_runs import autoencoder_config
from test_objective_elbo import make_batch
from test_trainer import assert_same_state, run
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from genray import snapshot
from genray.checkpoint import step_name
from genray.config import Data, Optim
from genray.data.images import load_images
from genray.errors import ConfigError
from genray.models.vae import AdversarialVAE
from genray.models.vae_gan import ConvVAEGAN
from genray.objectives import Networks
from genray.objectives.latent_adversarial import LatentAdversarial
from genray.objectives.vae_gan import VAEGAN
from genray.sampling import reconstruct

MODEL = ConvVAEGAN(latent_dim=4, width=8, norm="none", discriminator_width=8, discriminator_norm="none")
OBJECTIVE = VAEGAN(beta=0.7, gamma=0.3)


def networks_and_batch() -> tuple[Networks, Any]:
    torch.manual_seed(0)
    bare = MODEL.build((1, 8, 8), 10)
    with torch.no_grad():
        for weights in bare["discriminator"].parameters():  # fresh ones are too small for features to be heard
            weights.mul_(10)
    return Networks(bare, bare), make_batch(torch.rand(6, 1, 8, 8) * 2 - 1)


def parts_of_the_paper(networks: Networks, batch: Any) -> dict[str, torch.Tensor]:
    """The prior's, the features' and the adversarial loss, and images of the prior, from the networks themselves."""
    vae: Any = networks.bare["vae"]
    judge: Any = networks.bare["discriminator"]
    mu, logvar = vae.encode(batch.images)
    z = mu + (logvar / 2).exp() * batch.draws.normal("posterior", 4)
    reconstructions = 2 * vae.decode(z).sigmoid() - 1
    drawn = 2 * vae.decode(batch.draws.normal("prior", 4)).sigmoid() - 1
    gaps = judge.layers(reconstructions) - judge.layers(batch.images)
    return {
        "prior": kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean(),
        "features": 0.5 * gaps.square().sum(dim=(1, 2, 3)).mean(),
        "adversarial": F.softplus(-judge(reconstructions)).mean() + F.softplus(-judge(drawn)).mean(),
        "discriminator": F.softplus(-judge(batch.images)).mean()
        + F.softplus(judge(reconstructions)).mean()
        + F.softplus(judge(drawn)).mean(),
    }


def assert_gradients(networks: Networks, batch: Any, module: str, starts: str, **weights: float) -> None:
    """Those that `loss` left in the weights of `module` are those of the weighted parts of the paper."""
    parameters = {n: p for n, p in networks.bare[module].named_parameters() if n.startswith(starts)}
    left = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    assert left.keys() == parameters.keys() != set()
    networks.require_gradients(*networks.bare)
    parts = parts_of_the_paper(networks, batch)
    loss = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()
    wanted = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for (name, gradient), expected in zip(left.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def vae_phase() -> tuple[Networks, Any]:
    networks, batch = networks_and_batch()
    made = OBJECTIVE.prepare(networks, batch)
    networks.require_gradients("vae")
    OBJECTIVE.loss("vae", "all", networks, batch, made)[0].backward()  # type: ignore[no-untyped-call]
    return networks, batch


def test_encoder_learns_of_the_prior_and_of_the_features_alone() -> None:
    assert_gradients(*vae_phase(), "vae", "encoder", prior=0.7, features=1.0)


def test_decoder_learns_of_the_features_gamma_times_and_of_the_discriminator() -> None:
    assert_gradients(*vae_phase(), "vae", "decoder", features=0.3, adversarial=1.0)


def test_discriminator_learns_of_reals_reconstructions_and_draws_of_the_prior() -> None:
    networks, batch = networks_and_batch()
    made = OBJECTIVE.prepare(networks, batch)
    networks.require_gradients("discriminator")
    for part in ("reals", "fakes"):
        OBJECTIVE.loss("discriminator", part, networks, batch, made)[0].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in networks.bare["vae"].parameters())
    assert_gradients(networks, batch, "discriminator", "", discriminator=1.0)


def test_metrics_of_vae_gan_are_the_parts_of_the_paper() -> None:
    networks, batch = networks_and_batch()
    loss, metrics = OBJECTIVE.loss("vae", "all", networks, batch, OBJECTIVE.prepare(networks, batch))
    parts = parts_of_the_paper(networks, batch)
    for name, key in (("prior", "kl"), ("features", "feature_distance"), ("adversarial", "adversarial")):
        assert metrics[f"vae/{key}"].item() == pytest.approx(parts[name].item(), rel=1e-4)
    total = 0.7 * parts["prior"] + 0.3 * parts["features"] + parts["adversarial"]
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (AdversarialVAE(), VAEGAN(), "has vae and discriminator of latents; choose model conv-vae-gan"),
        (MODEL, LatentAdversarial(), "has vae and discriminator of images; choose model adversarial-vae"),
        (replace(MODEL, num_flows=1), VAEGAN(), r"model\.num_flows=1 makes another prior or posterior"),
        (replace(MODEL, output="scale"), VAEGAN(), "set --model.output logits"),
    ],
    ids=["judge-of-latents", "judge-of-images", "flows", "scale"],
)
def test_vae_gan_refuses_what_it_does_not_train(model: Any, objective: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        autoencoder_config(model, objective, 1)


def test_weight_of_the_features_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match=r"^objective\.gamma=0\.0 must be above 0: without it nothing ties an image"):
        VAEGAN(gamma=0.0)


def test_vae_gan_of_digits_reconstructs_pixels_better_by_training_on_features(tmp_path) -> None:
    model = ConvVAEGAN(latent_dim=8, width=16, discriminator_width=16)
    images = load_images(Data(name="digits"), "test").images
    errors = []
    for steps in (1, 250):
        config = autoencoder_config(model, VAEGAN(gamma=1.0), steps, checkpoint_every=1000, log_every=50)
        folder = run(replace(config, optim=Optim(lr=2e-3, betas=(0.5, 0.99))), tmp_path / str(steps))
        made = snapshot.load(folder.local / "snapshots" / step_name(steps))
        errors.append((reconstruct(made.module, images).float() - images.float()).square().mean().item())
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])
def test_vae_gan_resumed_from_a_checkpoint_ends_bit_identical(conditional: bool, tmp_path) -> None:
    model = replace(MODEL, conditional=conditional)
    whole = run(autoencoder_config(model, VAEGAN(), 6), tmp_path / "whole")
    run(autoencoder_config(model, VAEGAN(), 3), tmp_path / "halves")
    halves = run(autoencoder_config(model, VAEGAN(), 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)

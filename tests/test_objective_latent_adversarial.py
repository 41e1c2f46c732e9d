"""Discriminators of latents: what they are shown, what the encoder is told, and a short run on digits."""

from dataclasses import replace

import pytest
import torch
from test_autoencoder_runs import autoencoder_config, last_metrics
from test_objective_elbo import make_batch
from test_trainer import assert_same_state, run
from torch.nn import functional as F

from genray.models.vae import MLPVAE, AdversarialVAE
from genray.objectives import Networks
from genray.objectives.elbo import ELBO
from genray.objectives.latent_adversarial import LatentAdversarial, shuffled

MODEL = AdversarialVAE(latent_dim=4, hidden=32)


def test_shuffled_latents_keep_each_dimension_and_lose_their_rows() -> None:
    z = torch.randn(64, 1).repeat(1, 3)
    found = shuffled(z, make_batch(torch.zeros(64, 1, 8, 8)))
    assert torch.equal(found.sort(dim=0).values, z.sort(dim=0).values)
    assert z.T.corrcoef()[0, 1] > 0.99
    assert found.T.corrcoef()[0, 1].abs() < 0.5


@pytest.mark.parametrize("form", ["factor", "adversarial"])
def test_encoder_is_told_log_odds_or_how_unlike_the_prior_its_latents_are(form: str) -> None:
    bare = MODEL.build((1, 8, 8), 10)
    networks, batch = Networks(bare, bare), make_batch(torch.rand(8, 1, 8, 8) * 2 - 1)
    objective = LatentAdversarial(form=form, gamma=3.0)  # type: ignore[arg-type]
    shared = objective.prepare(networks, batch)
    loss, _ = objective.loss("vae", "all", networks, batch, shared)
    plain, _ = ELBO().loss("vae", "all", networks, batch, ELBO().prepare(networks, batch))
    logits = bare["discriminator"](shared[0].z)
    told = logits.mean() if form == "factor" else -F.logsigmoid(-logits).mean()
    torch.testing.assert_close(loss, plain + 3 * told)


def test_discriminator_of_latents_has_the_cross_entropy_of_two_classes() -> None:
    bare = MODEL.build((1, 8, 8), 10)
    networks, batch = Networks(bare, bare), make_batch(torch.rand(8, 1, 8, 8) * 2 - 1)
    objective = LatentAdversarial(form="adversarial")
    shared = objective.prepare(networks, batch)
    parts = [objective.loss("discriminator", part, networks, batch, shared)[0] for part in ("reals", "fakes")]
    points = torch.cat([batch.draws.normal("prior", 4), shared[0].z])
    classes = torch.tensor([0.0] * 8 + [1.0] * 8)
    expected = F.binary_cross_entropy_with_logits(bare["discriminator"](points), classes)
    torch.testing.assert_close(sum(parts) / 2, expected)


def test_adversarial_autoencoder_of_digits_learns_without_a_kl_term(tmp_path) -> None:
    objective = LatentAdversarial(form="adversarial", beta=0.0, gamma=10.0)
    first, last = (last_metrics(MODEL, objective, tmp_path / str(n), n) for n in (1, 250))
    assert last["vae/recon_loss"] < first["vae/recon_loss"] - 15
    free = last_metrics(MODEL, replace(objective, gamma=0.0), tmp_path / "free", 250)
    assert last["vae/kl"] < free["vae/kl"] / 5


def test_adversarial_form_refuses_a_prior_that_nothing_would_train() -> None:
    learned = replace(MODEL, num_pseudo_inputs=3)
    LatentAdversarial().check(learned)
    with pytest.raises(ValueError, match=r"and model\.num_pseudo_inputs=3 learns another"):
        LatentAdversarial(form="adversarial", beta=0.0).check(learned)


def test_factor_vae_resumed_from_a_checkpoint_ends_bit_identical(tmp_path) -> None:
    whole = run(autoencoder_config(MODEL, LatentAdversarial(), 6), tmp_path / "whole")
    run(autoencoder_config(MODEL, LatentAdversarial(), 3), tmp_path / "halves")
    halves = run(autoencoder_config(MODEL, LatentAdversarial(), 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)


def test_latent_adversarial_refuses_a_model_without_a_discriminator() -> None:
    with pytest.raises(ValueError, match="trains vae and discriminator, and model mlp-vae has vae; choose model"):
        LatentAdversarial().check(MLPVAE())

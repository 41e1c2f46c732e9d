"""What continuous latents cost and leave behind: against distributions of torch and draws."""

import pytest
import torch
from test_objective_elbo import make_batch
from torch.distributions import Normal, kl_divergence

from genray.models.tokenizer import Tokenizer
from genray.objectives import Networks
from genray.objectives.tokenizer import Tokenization, tokenize

MODEL = Tokenizer(quantizer="none", code_dim=3, width=8, num_downsamplings=1)


def made() -> tuple[Networks, torch.Tensor]:
    torch.manual_seed(0)
    bare = MODEL.build((1, 8, 8), 10)
    return Networks(bare, bare), torch.rand(6, 1, 8, 8) * 2 - 1


def test_loss_of_continuous_latents_is_the_likelihood_of_draws_and_a_weighted_divergence() -> None:
    networks, images = made()
    objective, batch = Tokenization(sigma=0.2, beta=0.7), make_batch(images)
    found = tokenize(networks, batch)
    loss, metrics = objective.loss("tokenizer", "all", networks, batch, None)
    posterior = Normal(found.features.double(), (found.logvar.double() / 2).exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    nll = -Normal(found.logits.double().sigmoid(), 0.2).log_prob((images.double() + 1) / 2).flatten(1).sum(1).mean()
    assert loss.item() == pytest.approx((nll + 0.7 * kl).item(), rel=1e-5)
    assert metrics["tokenizer/kl"].item() == pytest.approx(kl.item(), rel=1e-5)


def test_latents_of_a_step_are_other_draws_of_their_posteriors_than_those_of_the_next() -> None:
    networks, images = made()
    one, other = tokenize(networks, make_batch(images)), tokenize(networks, make_batch(images, step=1))
    assert torch.equal(one.features, other.features) and not torch.equal(one.logits, other.logits)


def test_scale_of_latents_follows_the_moments_of_their_draws() -> None:
    networks, images = made()
    quantizer = networks.bare["tokenizer"].quantizer
    Tokenization().loss("tokenizer", "all", networks, make_batch(images), None)
    found = tokenize(networks, make_batch(images))
    noise = torch.randn(20_000, *found.features.shape)
    draws = found.features + noise * torch.exp(0.5 * found.logvar)
    for buffer, before, moment in ((quantizer.mean, 0.0, draws), (quantizer.square, 1.0, draws.square())):
        expected = 0.99 * before + 0.01 * moment.mean(dim=(0, 1, 3, 4))
        torch.testing.assert_close(buffer, expected, atol=1e-4, rtol=1e-3)


def test_weight_of_the_divergence_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^objective\.beta=-1 must be at least 0$"):
        Tokenization(beta=-1)

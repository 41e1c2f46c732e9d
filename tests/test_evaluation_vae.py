"""Importance-sampled likelihood, latent use and reconstructions of VAEs, against closed forms."""

import math

import evaluation_snapshots as snapshots
import pytest
import torch
from evaluation_snapshots import save_vae
from torch.distributions import Bernoulli, Normal

from genray import snapshot
from genray.config import Eval
from genray.data.images import ImageSet
from genray.errors import DivergenceError, ProtocolError
from genray.evaluation import likelihood
from genray.evaluation.latent import active_units, mean_variance, reconstructions
from genray.evaluation.likelihood import bits_per_dim, bounds, importance_nll, posteriors
from genray.evaluation.vae_scores import likelihood_scores
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.sampling import to_uint8


def images(num):
    return torch.randint(256, (num, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def posterior_is_prior(module):
    """The encoder says N(0, 1) of every image."""
    last = module.encoder[-1] if hasattr(module, "encoder") else None
    assert last is not None
    last.weight.zero_()
    last.bias.zero_()


def decoder_ignores_z(module):
    posterior_is_prior(module)
    first = next(m for m in module.decoder.modules() if isinstance(m, torch.nn.Linear))
    first.weight.zero_()


@pytest.fixture
def vae(tmp_path):
    return snapshot.load(save_vae(tmp_path / "vae", ELBO(binarize=False)))


@pytest.fixture
def unused(tmp_path):
    """A VAE whose latent is not used."""
    return snapshot.load(save_vae(tmp_path / "unused", ELBO(binarize=False), change=decoder_ignores_z))


def test_vae_with_an_unused_latent_has_no_active_units_and_no_kl(unused):
    found = posteriors(unused, images(30), seed=0)
    assert active_units(found.mu) == 0
    assert found.kl.abs().max() == 0


def test_active_units_are_those_above_the_papers_variance():
    spread = torch.tensor([1.0, 0.2, 0.05, 0.0]) * torch.tensor([[1.0], [-1.0]]).repeat(50, 1)
    assert active_units(spread + 7) == 2
    assert mean_variance(spread)[0] == pytest.approx(100 / 99)


def test_active_units_of_one_image_are_refused():
    with pytest.raises(ProtocolError, match="active units need at least 2 images, got 1"):
        active_units(torch.zeros(1, 3))


def test_kl_per_dimension_sums_to_the_kl_of_the_bound(vae):
    assert posteriors(vae, images(9), 0).kl.sum(1).tolist() == pytest.approx(bounds(vae, images(9), 0).kl.tolist())


def test_nll_is_exact_where_the_latent_is_not_used(unused):
    exact = bounds(unused, images(9), seed=0).recon_nll
    torch.testing.assert_close(importance_nll(unused, images(9), 3, num_draws=4), exact)


def test_nll_agrees_with_distributions_draw_by_draw(vae):
    pixels = images(3)
    observed = pixels.float() / 255
    from genray.sampling import latents
    from genray.streams import derive_seed

    weights = []
    with torch.no_grad():
        mu, logvar = (x.double() for x in vae.module.encode(2 * observed - 1))
        for draw in range(5):
            z = mu + latents(3, 3, derive_seed(1, "nll/posterior", draw)).double() * (logvar / 2).exp()
            decoded = Bernoulli(logits=vae.module.decode(z.float()).double(), validate_args=False)
            joint = decoded.log_prob(observed.double()).flatten(1).sum(1) + Normal(0, 1).log_prob(z).sum(1)
            weights.append(joint - Normal(mu, (logvar / 2).exp()).log_prob(z).sum(1))
    expected = -(torch.stack(weights).logsumexp(0) - math.log(5))
    torch.testing.assert_close(importance_nll(vae, pixels, 1, num_draws=5), expected, rtol=1e-6, atol=0)


def test_nll_falls_below_the_bound_as_draws_grow(tmp_path):
    vae = snapshot.load(save_vae(tmp_path / "vae", change=lambda module: module.decoder[0].weight.mul_(30)))
    bound = -bounds(vae, images(200), 0).elbo.mean()
    values = [importance_nll(vae, images(200), 0, num_draws).mean() for num_draws in (1, 8, 64)]
    assert bound > values[1] > values[2]
    assert values[0] == pytest.approx(float(bound), rel=0.05)


def test_nll_does_not_depend_on_the_batch_size(vae):
    first, second = (importance_nll(vae, images(30), 0, 4, batch_size) for batch_size in (7, 30))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0)


def test_nll_of_a_diverged_vae_is_an_error(tmp_path):
    broken = snapshot.load(save_vae(tmp_path / "vae", change=lambda m: next(m.parameters()).fill_(torch.nan)))
    with pytest.raises(DivergenceError, match="non-finite likelihood for 3 of 3 images"):
        importance_nll(broken, images(3), 0, 2)


def test_bits_per_dim_of_fair_coins_is_1():
    assert bits_per_dim(64 * math.log(2), 64, "bernoulli") == pytest.approx(1)


def test_bits_per_dim_of_a_uniform_density_on_256_levels_is_8():
    assert bits_per_dim(0.0, 3072, "gaussian") == 8


def scores_of(model, pixels, *names):
    classes = tuple("0123456789")
    reals = ImageSet(pixels, torch.arange(len(pixels)) % 10, classes, "noise", "test", digest="0" * 64, num_skipped=0)
    return likelihood_scores(names, model, reals, Eval(num_seeds=1))


def test_bits_per_dim_of_a_density_are_of_levels_spread_over_their_share_of_the_range(tmp_path):
    def silent(module):
        decoder_ignores_z(module)
        for parameter in module.decoder.parameters():
            parameter.zero_()

    model = snapshot.load(save_vae(tmp_path / "vae", ELBO(likelihood="gaussian", sigma=1e-3), change=silent))
    scores = scores_of(model, torch.full((300, 1, 8, 8), 128, dtype=torch.uint8), "bits_per_dim", "recon_nll")
    # the mean is at the lower end of the level's share: a uniform number on it lies width**2 / 3 away in the square
    nats = 0.5 * (1 / 256) ** 2 / 3 / 1e-3**2 + math.log(1e-3) + 0.5 * math.log(2 * math.pi)
    assert scores["bits_per_dim"].value == pytest.approx(8 + nats / math.log(2), abs=0.05)
    assert scores["bits_per_dim"].protocol.extra["levels"] == "spread evenly"
    at_the_level = 0.5 * (0.5 - 128 / 255) ** 2 / 1e-3**2 + math.log(1e-3) + 0.5 * math.log(2 * math.pi)
    assert scores["recon_nll"].value == pytest.approx(64 * at_the_level, rel=1e-4)


@pytest.mark.parametrize(("knobs", "num"), [({}, 3), ({"num_flows": 1}, 0), ({"num_pseudo_inputs": 4}, 0)], ids=str)
def test_kl_has_its_dimensions_beside_it_only_where_they_sum_to_it(knobs, num, tmp_path):
    model = snapshot.load(snapshots.save(tmp_path / "vae", MLPVAE(latent_dim=3, hidden=16, **knobs), ELBO()))
    score = scores_of(model, images(9), "kl")["kl"]
    found = score.details.get("per_dimension", [])
    assert len(found) == num and (not num or sum(found) == pytest.approx(score.value))


def test_noise_of_many_latents_is_made_for_few_images_at_a_time_whatever_the_batch(vae, monkeypatch):
    whole = importance_nll(vae, images(30), 0, 4)
    monkeypatch.setattr(likelihood, "NOISE_AT_ONCE", 4 * 3 * 16)  # sixteen images
    first, second = (importance_nll(vae, images(30), 0, 4, batch_size) for batch_size in (7, 30))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
    torch.testing.assert_close(first[:16], whole[:16], rtol=1e-6, atol=0)
    assert not (first[16:] == whole[16:]).any()


def test_reconstructions_are_what_the_posterior_mean_decodes_to(vae):
    pixels = images(9)
    found = torch.cat(list(reconstructions(vae, pixels, batch_size=4)))
    mu, _ = vae.module.encode(pixels.float() / 127.5 - 1)
    assert (found.int() - to_uint8(vae.module.generate(mu)).int()).abs().max() <= 1

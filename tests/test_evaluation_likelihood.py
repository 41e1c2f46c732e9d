import math

import pytest
import torch
from evaluation_snapshots import save_classifier, save_vae
from torch import nn

from genray import snapshot
from genray.errors import ConfigError, DivergenceError, ProtocolError
from genray.evaluation.likelihood import bounds
from genray.objectives.elbo import ELBO


def images(num):
    return torch.randint(256, (num, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def silence(module):
    """Posterior = prior, and every logit 0."""
    for layer in (m for m in module.modules() if isinstance(m, nn.Linear)):
        layer.weight.zero_()
        layer.bias.zero_()


def load_vae(directory, objective=None, **options):
    return snapshot.load(save_vae(directory, objective, **options))


def test_bound_of_a_silent_bernoulli_vae_is_ln2_a_pixel(tmp_path):
    found = bounds(load_vae(tmp_path / "vae", change=silence), images(5), seed=0)
    torch.testing.assert_close(found.elbo, torch.full((5,), -64 * math.log(2), dtype=torch.float64))
    assert torch.equal(found.kl, torch.zeros(5, dtype=torch.float64))


def test_bound_of_a_silent_gaussian_vae_is_the_normal_density(tmp_path):
    vae = load_vae(tmp_path / "vae", ELBO(likelihood="gaussian", sigma=0.2), change=silence)
    pixels = images(5).double() / 255
    log_density = torch.distributions.Normal(0.5, 0.2).log_prob(pixels).flatten(1).sum(1)
    torch.testing.assert_close(bounds(vae, images(5), seed=0).elbo, log_density, rtol=1e-5, atol=1e-4)


def test_kl_of_a_known_posterior_is_the_closed_form(tmp_path):
    def posterior(module):
        silence(module)
        last = [m for m in module.encoder.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.copy_(torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, math.log(4)]))  # mu of 3, then logvar of 3

    vae = load_vae(tmp_path / "vae", change=posterior)
    expected = 0.5 * (1 + 4) + 0.5 * (4 - 1 - math.log(4))
    torch.testing.assert_close(bounds(vae, images(2), seed=0).kl, torch.full((2,), expected, dtype=torch.float64))


def test_bound_is_below_the_log_likelihood_by_importance_sampling(tmp_path):
    # Black and white images: binarising draws nothing, so all seeds score the same observations.
    vae = load_vae(tmp_path / "vae")
    pixels = (images(4) > 127).to(torch.uint8) * 255
    elbo = torch.stack([bounds(vae, pixels, seed).elbo for seed in range(50)]).mean(0)
    x = pixels.double() / 255
    mu, logvar = (t.double() for t in vae.module.encode(2 * x.float() - 1))
    noise = torch.randn(5000, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = mu + noise * (logvar / 2).exp()
    log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
        vae.module.decode(z.float().reshape(-1, 3)).double().reshape(5000, 4, 64), x.flatten(1).expand(5000, 4, 64),
        reduction="none",
    ).sum(2)  # fmt: skip
    prior = torch.distributions.Normal(0, 1).log_prob(z).sum(2)
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z).sum(2)
    log_likelihood = torch.logsumexp(log_p + prior - posterior, 0) - math.log(5000)
    assert (elbo < log_likelihood).all()


def test_kl_is_of_the_posterior_of_images_from_minus_one_to_one(tmp_path):
    vae = load_vae(tmp_path / "vae")
    pixels = (images(4) > 127).to(torch.uint8) * 255
    mu, logvar = vae.module.encode(pixels.float() / 127.5 - 1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, (logvar / 2).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(bounds(vae, pixels, 0).kl.float(), expected)


def test_bounds_with_equal_seed_are_equal_and_otherwise_not(tmp_path):
    vae = load_vae(tmp_path / "vae")
    first = bounds(vae, images(9), seed=1).elbo
    assert torch.equal(first, bounds(vae, images(9), seed=1).elbo)
    assert not torch.equal(first, bounds(vae, images(9), seed=2).elbo)


def test_bounds_do_not_depend_on_the_batch_size(tmp_path):
    vae = load_vae(tmp_path / "vae")
    torch.testing.assert_close(bounds(vae, images(50), 1, 7).elbo, bounds(vae, images(50), 1, 50).elbo)


def test_bound_does_not_depend_on_beta(tmp_path):
    plain, weighted = (load_vae(tmp_path / f"{beta}", ELBO(beta=beta)) for beta in (1.0, 4.0))
    assert torch.equal(bounds(plain, images(5), 0).elbo, bounds(weighted, images(5), 0).elbo)


def test_bound_without_binarising_is_the_cross_entropy_with_the_greys(tmp_path):
    def constant(module):
        silence(module)
        module.decoder[-2].bias.fill_(1.0)  # every logit

    vae = load_vae(tmp_path / "vae", ELBO(binarize=False), change=constant)
    grey = torch.full((1, 1, 8, 8), 51, dtype=torch.uint8)  # 0.2
    expected = 64 * (math.log1p(math.exp(1.0)) - 0.2)
    assert float(bounds(vae, grey, 0).recon_nll) == pytest.approx(expected, rel=1e-6)


def test_bound_of_a_classifier_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'digits-classifier' is a classifier, which was not trained on a bound"):
        bounds(snapshot.load(save_classifier(tmp_path / "classifier")), images(2), 0)


def test_bound_of_images_of_another_size_is_refused(tmp_path):
    with pytest.raises(ProtocolError, match=r"images are \(1, 4, 4\), but VAE 'digits-generator' was trained on"):
        bounds(load_vae(tmp_path / "vae"), images(2)[:, :, :4, :4], 0)


def test_bound_that_is_not_finite_is_an_error(tmp_path):
    vae = load_vae(tmp_path / "vae", change=lambda module: next(module.decoder.parameters()).fill_(math.nan))
    with pytest.raises(DivergenceError, match="gives a non-finite bound for 3 of 3 images"):
        bounds(vae, images(3), 0)

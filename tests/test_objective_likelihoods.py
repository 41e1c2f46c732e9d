"""Likelihoods of pixels against torch.distributions."""

from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from genray.models.pixel_distributions import NUM_LOGISTICS, mixture_parts, num_outputs
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.objectives.likelihoods import logistic_mixture_nll, nll, scaled_gaussian_nll


def test_scaled_gaussian_nll_equals_that_of_torch_distributions() -> None:
    means, log_sigma, targets = torch.rand(6, 3, 8, 8), torch.randn(6, 3, 8, 8), torch.rand(6, 3, 8, 8)
    expected = -distributions.Normal(means, log_sigma.exp()).log_prob(targets).sum(dim=(1, 2, 3))
    torch.testing.assert_close(scaled_gaussian_nll(means, log_sigma, targets), expected)


def mixture_cdf(parameters: Tensor, x: float) -> Tensor:
    """Mass below `x` of each component, (B, K, C, H, W), by an affine image of a uniform distribution."""
    _, means, log_scales = mixture_parts(parameters.double())
    uniform = distributions.Uniform(torch.zeros_like(means), torch.ones_like(means))
    steps = [distributions.SigmoidTransform().inv, distributions.AffineTransform(means, log_scales.exp())]
    return distributions.TransformedDistribution(uniform, steps).cdf(torch.full_like(means, x))


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_logistic_mixture_nll_is_the_mass_between_the_midpoints_of_its_neighbours(level: int) -> None:
    parameters = torch.randn(2, num_outputs("logistic-mixture", 3), 4, 4)
    parameters[:, NUM_LOGISTICS * 4 :] -= 2
    x = 2 * level / 255 - 1
    above = mixture_cdf(parameters, x + 1 / 255) if level < 255 else torch.tensor(1.0)
    below = mixture_cdf(parameters, x - 1 / 255) if level > 0 else torch.tensor(0.0)
    weights, _, _ = mixture_parts(parameters.double())
    mass = (weights.softmax(dim=1) * (above - below).prod(dim=2)).sum(dim=1)
    found = logistic_mixture_nll(parameters, torch.full((2, 3, 4, 4), level / 255))
    torch.testing.assert_close(found.double(), -mass.log().flatten(1).sum(1), rtol=1e-4, atol=1e-3)


def test_logistic_mixture_of_all_levels_has_mass_1() -> None:
    parameters = 3 * torch.randn(1, num_outputs("logistic-mixture", 1), 1, 1).double()
    levels = torch.arange(256).view(256, 1, 1, 1).double() / 255
    masses = (-logistic_mixture_nll(parameters.expand(256, -1, -1, -1), levels)).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)


def test_logistic_mixture_nll_is_finite_where_the_mass_is_not_in_floating_point() -> None:
    parameters = torch.full((1, num_outputs("logistic-mixture", 1), 1, 1), -50.0)
    assert logistic_mixture_nll(parameters, torch.full((1, 1, 1, 1), 100 / 255)).isfinite().all()


@pytest.mark.parametrize(("output", "spread"), [("scale", 0.3), ("global-scale", 0.3)])
def test_gaussian_likelihood_reads_the_scale_that_the_decoder_names(output: Any, spread: float) -> None:
    vae = MLPVAE(output=output, hidden=8).build((1, 4, 4), 0)["vae"]
    with torch.no_grad():
        if output == "scale":
            vae.decoder[-2].bias[16:] = torch.tensor(spread).log()
            vae.decoder[-2].weight[16:] = 0
        else:
            vae.log_sigma.fill_(spread).log_()
    parameters, targets = vae.decode(torch.randn(5, 20)), torch.rand(5, 1, 4, 4)
    logits = parameters[:, :1]
    expected = nll("gaussian", logits, targets, sigma=spread)
    torch.testing.assert_close(nll("gaussian", parameters, targets, sigma=9.0), expected)


def test_likelihood_refuses_a_decoder_that_says_something_else() -> None:
    with pytest.raises(ValueError) as caught:
        ELBO(likelihood="logistic-mixture").check(MLPVAE())
    assert str(caught.value) == (
        "objective.likelihood='logistic-mixture' reads logistic-mixture of the decoder, and model.output='logits'; "
        "set --model.output logistic-mixture"
    )

"""What is fitted to latents: densities that are exact, bounds that are, and draws that follow them."""

import math

import pytest
import torch
from torch import Tensor, nn

from genray.models.fitted_latents import MaskedFlow, MaskedFlows, SecondStage
from genray.models.vae import MLPVAE


def shaken(module: nn.Module, by: float = 0.4, seed: int = 0) -> nn.Module:
    """`module` in float64 with weights far from those it starts with."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(by * torch.randn(parameter.shape, generator=source))
    return module.double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flows(dim: int, num: int = 3, by: float = 0.4) -> MaskedFlows:
    made = MaskedFlows(num, dim, hidden=12)
    shaken(made, by)
    made.scaling.measure(normal(100, dim) * 3 + 1)
    return made


def grid(half: float, num: int) -> tuple[Tensor, float]:
    """Points (num², 2) of a square around 0, and the area of each."""
    line = torch.linspace(-half, half, num, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float((line[1] - line[0]) ** 2)


@torch.no_grad()
def test_density_of_flows_integrates_to_1() -> None:
    points, area = grid(60, 1201)
    assert abs(float(flows(2).log_density(points).exp().sum() * area) - 1) < 1e-3


def test_density_of_flows_equals_the_normal_one_times_the_jacobian_of_autograd() -> None:
    made, point = flows(5), normal(5)
    jacobian = torch.autograd.functional.jacobian(lambda x: made.normalise(x.unsqueeze(0))[0].squeeze(0), point)
    of_noise = torch.distributions.Normal(0.0, 1.0).log_prob(made.normalise(point.unsqueeze(0))[0]).sum()
    expected = of_noise + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(made.log_density(point.unsqueeze(0))[0], expected)


def test_dimension_of_a_masked_flow_depends_on_itself_and_those_before_it_and_on_each_of_them() -> None:
    flow = MaskedFlow(5, hidden=12)
    shaken(flow)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x.unsqueeze(0))[0].squeeze(0), torch.ones(5).double())
    assert torch.equal(jacobian != 0, torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_flows_draw_the_points_that_they_take_back_to_the_noise(dim: int) -> None:
    made, noise = flows(dim, by=0.2).float(), normal(50, dim, seed=1).float()
    assert (made(noise) - made.scaling.back(noise)).abs().max() > 0.1
    torch.testing.assert_close(made.normalise(made(noise))[0], noise, atol=1e-5, rtol=1e-5)


def test_fresh_flows_are_a_normal_distribution_of_what_was_measured() -> None:
    made = MaskedFlows(3, 2, hidden=12)
    points = (normal(500, 2) * torch.tensor([0.1, 7.0]) + 3).float()
    made.scaling.measure(points)
    expected = torch.distributions.Normal(points.mean(0), points.std(0)).log_prob(points).sum(dim=1)
    torch.testing.assert_close(made.log_density(points), expected)


def second_stage(dim: int = 1) -> SecondStage:
    made = SecondStage(dim, hidden=8)
    shaken(made)
    made.scaling.measure(normal(100, dim) * 3 + 1)
    return made


@torch.no_grad()
def log_density(made: SecondStage, point: float) -> float:
    """By quadrature over the latent, of one dimension."""
    u = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1)
    joint = made.log_joint(torch.full_like(u, point), u)
    return float(joint.logsumexp(0) + torch.log(u[1] - u[0]))


@torch.no_grad()
def test_bound_of_a_second_stage_misses_the_density_by_the_divergence_of_its_posterior() -> None:
    made, point = second_stage(), 0.7
    mu, logvar = made.posterior(torch.tensor([[point]], dtype=torch.float64))
    u = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1)
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(u).squeeze(1)
    true = made.log_joint(torch.full_like(u, point), u) - log_density(made, point)
    gap = float((q.exp() * (q - true)).sum() * (u[1] - u[0]))
    points = torch.full((200_000, 1), point, dtype=torch.float64)
    bound = made.bound(points, normal(200_000, 1))
    assert gap > 0.05
    assert float(bound.mean()) == pytest.approx(log_density(made, point) - gap, abs=0.01)


@torch.no_grad()
def test_draws_of_a_second_stage_follow_its_density() -> None:
    made = second_stage()
    drawn = made(normal(20_000, 2)).squeeze(1)
    line = torch.linspace(float(drawn.min()) - 20, float(drawn.max()) + 20, 400, dtype=torch.float64)
    density = torch.tensor([math.exp(log_density(made, float(x))) for x in line])
    below = (density.cumsum(0) * (line[1] - line[0])).clamp(max=1)
    found = torch.tensor([float((drawn <= x).double().mean()) for x in line])
    assert float((below - found).abs().max()) < 0.03


@pytest.mark.parametrize("knobs", [{"second_stage": 8}, {"num_masked_flows": 2}, {"num_components": 3}], ids=str)
def test_vae_with_something_fitted_encodes_and_bounds_as_without(knobs: dict[str, int]) -> None:
    plain = MLPVAE(latent_dim=4, hidden=16).build((1, 8, 8), 10)["vae"]
    fitted = MLPVAE(latent_dim=4, hidden=16, **knobs).build((1, 8, 8), 10)["vae"]
    fitted.load_state_dict(fitted.state_dict() | plain.state_dict())
    images, noise = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, fitted.latent_dim)
    for one, other in zip(plain(images, noise[:, :4]), fitted(images, noise), strict=True):
        assert torch.equal(one, other)


def test_two_distributions_fitted_to_one_vae_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.num_components=2 and model\.num_masked_flows=5 are both fitted"):
        MLPVAE(num_components=2, num_masked_flows=5)

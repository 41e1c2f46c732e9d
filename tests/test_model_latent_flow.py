"""Flows to continuous latents: what the velocity depends on, and where it leads."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genray.models.code_transformer import CodeTransformer
from genray.models.latent_flow import LatentFlow, LatentGenerator, waves
from genray.objectives.code_prediction import CodePrediction
from genray.objectives.flow_matching import FlowMatching

TINY = LatentFlow(code_dim=3, width=4, num_downsamplings=1, transformer_width=16, num_layers=2, num_heads=2)
TOLD = replace(TINY, conditional=True)


def built(model: LatentFlow, shift: float = 0.5) -> LatentGenerator:
    """A generator of 8 x 8 pixels, every parameter of its transformer moved by noise of this deviation."""
    torch.manual_seed(0)
    made = model.build((1, 8, 8), 10)["generator"].eval()
    assert isinstance(made, LatentGenerator)
    with torch.no_grad():
        for parameter in made.transformer.parameters():
            parameter.add_(shift * torch.randn_like(parameter))
    return made


class Straight(nn.Module):
    """The velocity that takes standard normal numbers to those of this mean and deviation, in closed form."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, points: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        t = times.view(-1, 1, 1, 1)
        variance = (1 - t).square() + (t * self.deviation).square()
        return self.mean + (t * self.deviation**2 - (1 - t)) / variance * (points - t * self.mean)


def test_flow_leads_from_the_standard_normal_distribution_to_the_one_that_its_velocity_is_of() -> None:
    made: Any = built(replace(TINY, num_flow_steps=32))
    made.transformer = Straight(3.0, 0.5)
    noise = torch.randn(64, 3, 4, 4)
    torch.testing.assert_close(made.flow(noise), 3 + 0.5 * noise, atol=5e-3, rtol=0)


def test_error_of_the_flow_falls_with_the_square_of_the_steps() -> None:
    noise, errors = torch.randn(64, 3, 4, 4).double(), []
    for num in (16, 32, 64):
        made: Any = built(replace(TINY, num_flow_steps=num))
        made.transformer = Straight(3.0, 0.5)
        errors.append(float((made.flow(noise) - 3 - 0.5 * noise).abs().mean()))
    assert [round(math.log2(a / b)) for a, b in pairwise(errors)] == [2, 2]


def test_untrained_flow_leaves_noise_as_it_is_and_decodes_it() -> None:
    made: Any = built(TINY, shift=0.0)
    made.quantizer.mean.fill_(0.3)
    made.quantizer.square.fill_(4.09)
    z = torch.randn(5, made.latent_dim)
    expected = 2 * torch.sigmoid(made.decoder(z.view(5, 3, 4, 4) * 2 + 0.3)) - 1
    torch.testing.assert_close(made.generate(z), expected)


def test_velocity_of_a_place_depends_on_every_place_and_on_time_and_label() -> None:
    made, points = built(TOLD), torch.randn(2, 3, 4, 4)
    times, labels = torch.full((2,), 0.3), torch.tensor([1, 2])
    velocity = made(points, times, labels)
    assert velocity.shape == points.shape
    for place in ((0, 0), (3, 3)):
        other = points.clone()
        other[:, :, place[0], place[1]] += 1
        assert bool(((made(other, times, labels) - velocity).abs().amax(dim=1) > 1e-6).all())
    assert not torch.allclose(made(points, times + 0.1, labels), velocity)
    assert not torch.allclose(made(points, times, labels + 1), velocity)


def test_places_are_told_apart() -> None:
    made, even = built(TINY), torch.ones(1, 3, 4, 4)
    velocity = made(even, torch.tensor([0.5])).flatten(2)[0].T
    assert len(velocity.round(decimals=4).unique(dim=0)) == 16


def test_near_times_are_told_apart_and_far_ones_more() -> None:
    near, far = (waves(torch.tensor([0.5, 0.5 + gap])) for gap in (1e-3, 0.3))
    assert 0.01 < float((near[0] - near[1]).square().sum()) < float((far[0] - far[1]).square().sum())


def test_latents_are_draws_of_the_posteriors_scaled_as_the_tokenizer_says() -> None:
    made: Any = built(TINY)
    made.quantizer.mean.fill_(0.3)
    made.quantizer.square.fill_(4.09)
    images, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 3, 4, 4)
    mu, logvar = made.encoder(images).chunk(2, dim=1)
    torch.testing.assert_close(made.latents(images, noise), (mu + noise * torch.exp(logvar / 2) - 0.3) / 2)


def test_tokenizer_has_no_parameters_and_the_transformer_all() -> None:
    names = [name for name, _ in built(TINY).named_parameters()]
    assert names and all(name.startswith("transformer.") for name in names)


def test_flow_to_codes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.quantizer='vq' makes codes, .* or choose model code-transformer$"):
        LatentFlow(quantizer="vq")


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.transformer_width=10 does not divide .* set it to 12$"):
        LatentFlow(transformer_width=10, num_heads=4)


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        (FlowMatching(), CodeTransformer(), "generator of latents, and model code-transformer has generator of codes"),
        (CodePrediction(), LatentFlow(), "generator of codes, and model latent-flow has generator of latents"),
    ],
)
def test_objective_of_another_kind_of_generator_is_refused(objective: Any, model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective.check(model)

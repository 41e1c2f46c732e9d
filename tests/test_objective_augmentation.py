"""Augmentation: what each operation does to pixels, and how the adaptive probability moves."""

from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_objective_gan import make_batch, make_networks
from torch import Tensor

from genray.objectives.augmentation import (
    NUM_DRAWS,
    AdaptiveProbability,
    augment,
    cut_out,
    jitter_color,
    translate,
)
from genray.objectives.gan import GAN
from genray.objectives.penalties import LogitMeans

ALL = ("color", "translation", "cutout")


def images_of(num: int = 4, channels: int = 3, height: int = 8, width: int = 16) -> Tensor:
    return torch.rand(num, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_translation_equals_moving_a_padded_image_by_hand() -> None:
    images = images_of(2)
    moved = translate(images, torch.tensor([[0.0, 0.999], [0.5, 0.0]]))  # (-1, 2) and (0, -2) pixels
    expected = torch.zeros_like(images)
    expected[0, :, :7, 2:] = images[0, :, 1:, :14]
    expected[1, :, :, :14] = images[1, :, :, 2:]
    assert torch.equal(moved, expected)


def test_color_with_draws_in_the_middle_changes_nothing() -> None:
    images = images_of()
    torch.testing.assert_close(jitter_color(images, torch.full((4, 3), 0.5)), images)


def test_color_without_saturation_is_grey() -> None:
    grey = jitter_color(images_of(), torch.tensor([[0.5, 0.0, 0.5]]).expand(4, 3))
    torch.testing.assert_close(grey, grey.mean(dim=1, keepdim=True).expand_as(grey))


def test_color_moves_brightness_and_stretches_contrast_around_the_mean() -> None:
    images = images_of(1, channels=1)
    changed = jitter_color(images, torch.tensor([[0.75, 0.3, 0.9]]))
    mean = images.mean() + 0.25
    torch.testing.assert_close(changed, mean + (images + 0.25 - mean) * 1.4)


def test_cutout_blanks_half_of_each_side_where_it_was_drawn() -> None:
    hollow = cut_out(torch.ones(2, 1, 8, 16), torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    expected = torch.ones(2, 1, 8, 16)
    expected[0, :, 2:6, 4:12] = 0
    expected[1, :, :2, :4] = 0
    assert torch.equal(hollow, expected)


def test_augmentation_at_probability_zero_changes_nothing() -> None:
    images, draws = images_of(), torch.rand(4, NUM_DRAWS)
    assert torch.equal(augment(images, draws, ALL, torch.zeros(())), images)


def test_augmentation_changes_the_share_of_images_that_its_probability_says() -> None:
    images = images_of(2000, 1, 8, 8)
    draws = torch.rand(2000, NUM_DRAWS, generator=torch.Generator().manual_seed(3))
    changed = (augment(images, draws, ("cutout",), 0.3) != images).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_augmentation_gradient_equals_finite_differences() -> None:
    images = images_of(2, 3, 8, 8).double().requires_grad_()
    draws = torch.rand(2, NUM_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, ALL, 1.0), images)


def test_generator_gets_its_gradient_through_the_augmentation() -> None:
    class FirstRow(torch.nn.Module):
        def forward(self, images: Tensor, labels: Any = None) -> Tensor:
            return images[:, 0, 0].sum(dim=1)

    batch, networks = make_batch(16), make_networks(discriminator=FirstRow())
    fakes = torch.zeros(16, 1, 8, 8, requires_grad=True)
    loss, _ = GAN(form="wasserstein", augment=("translation",)).loss("generator", "fakes", networks, batch, fakes)
    loss.backward()
    reached = (fakes.grad != 0).any(dim=3).any(dim=1).float().sum(dim=0)
    assert (reached[:2] > 0).all() and (reached[2:] == 0).all()  # an eighth of 8 pixels up or down


def test_adaptive_probability_rises_above_the_target_falls_below_it_and_stays_in_its_range() -> None:
    adaptive, sure, unsure = AdaptiveProbability(), torch.ones(8), torch.tensor([1.0, -1.0] * 4)
    seen = []
    for logits in (unsure, sure, sure, unsure):
        adaptive.update(logits, 0.6, 0.25)
        seen.append(adaptive.probability.item())
    for _ in range(5):
        adaptive.update(sure, 0.6, 0.25)
    assert seen == [0.0, 0.25, 0.5, 0.25]
    assert adaptive.probability.item() == pytest.approx(0.8)


def test_adaptive_probability_counts_signs_and_not_sizes_of_logits() -> None:
    adaptive = AdaptiveProbability()
    adaptive.update(torch.tensor([0.1, 0.1, 0.1, -9.0]), 0.4, 0.25)  # three of four above zero
    assert adaptive.probability.item() == 0.25
    adaptive.update(torch.tensor([-0.1, -0.1, -0.1, 9.0]), 0.4, 0.25)
    assert adaptive.probability.item() == 0.0


def test_adaptive_probability_goes_from_zero_to_one_half_in_half_of_its_images() -> None:
    class Sure(torch.nn.Module):
        def forward(self, images: Tensor, labels: Any = None) -> Tensor:
            return torch.ones(len(images))

    objective = GAN(augment=("cutout",), augment_target=0.6, augment_samples=80)
    networks = make_networks(discriminator=Sure(), **objective.state())
    for step in range(10):
        batch = make_batch(step=step)
        _, metrics = objective.loss("discriminator", "reals", networks, batch, batch.images)
    assert metrics["discriminator/augment_probability"].item() == pytest.approx(0.5)


def _remembered_by_unequal_ranks() -> tuple[float, float]:
    import torch.distributed as dist

    adaptive, means = AdaptiveProbability(), LogitMeans()
    logits = torch.tensor([1.0, 1.0, 1.0]) if dist.get_rank() else torch.tensor([1.0, -1.0, 1.0])
    adaptive.update(logits, 0.6, 0.125)
    means.update("reals", logits)
    return adaptive.probability.item(), means.reals.item()


@pytest.fixture(scope="module")
def remembered() -> list[tuple[float, float]]:
    """The probability and the mean that each of two ranks has after a step; rank 0 alone has a mean sign of 1/3."""
    return run_ranks(_remembered_by_unequal_ranks, 2)


def test_adaptive_probability_is_moved_by_the_signs_of_all_ranks(remembered: list[tuple[float, float]]) -> None:
    assert [probability for probability, _ in remembered] == [0.125, 0.125]


def test_means_of_logits_are_those_of_all_ranks(remembered: list[tuple[float, float]]) -> None:
    assert [mean for _, mean in remembered] == pytest.approx([0.01 * 2 / 3] * 2)

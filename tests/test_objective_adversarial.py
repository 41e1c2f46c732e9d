"""The forms of the adversarial loss and its penalties, against closed forms and direct evaluation in float64."""

from typing import Any

import pytest
import torch
from test_objective_gan import Constant, Linear, make_batch, make_networks, part_losses, run_phase
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models.dcgan import DCGAN
from genray.objectives.augmentation import NUM_DRAWS, augment, translate
from genray.objectives.gan import GAN
from genray.objectives.penalties import LogitMeans, interpolates, unit_gradient_penalty


class HalfSquare(nn.Module):
    """The discriminator D(x) = |x|² / 2, whose gradient at x is x."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale * images.square().flatten(1).sum(dim=1) / 2


@pytest.mark.parametrize("logit", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize(
    ("form", "reals", "fakes", "generator"),
    [
        ("least-squares", lambda d: (d - 1) ** 2 / 2, lambda d: (d + 1) ** 2 / 2, lambda d: (d - 1) ** 2 / 2),
        ("wasserstein", lambda d: -d, lambda d: d, lambda d: -d),
    ],
)
def test_form_gives_a_constant_logit_the_losses_of_its_paper(
    form: Any, reals: Any, fakes: Any, generator: Any, logit: float
) -> None:
    losses = part_losses(GAN(form=form), make_networks(discriminator=Constant(logit)))
    assert losses == pytest.approx([reals(logit), fakes(logit), generator(logit)], abs=1e-6)


@pytest.mark.parametrize("penalised", ["reals", "fakes", "both"])
def test_relativistic_loss_with_penalties_equals_a_sum_over_pairs_one_by_one(penalised: Any) -> None:
    batch, networks = make_batch(), make_networks()
    objective = GAN(form="relativistic", gamma=0.7, penalised=penalised)
    fakes = objective.prepare(networks, batch)
    loss, _ = objective.loss("discriminator", "pairs", networks, batch, fakes)
    discriminator = networks.bare["discriminator"]

    def slope(image: Tensor) -> Tensor:
        return torch.func.grad(lambda x: discriminator(x[None])[0])(image).square().sum()

    total = torch.zeros(())
    for real, fake in zip(batch.images, fakes.detach(), strict=True):
        total += F.softplus(discriminator(fake[None])[0] - discriminator(real[None])[0])
        total += 0.35 * sum(slope(x) for x, side in ((real, "reals"), (fake, "fakes")) if penalised in (side, "both"))
    torch.testing.assert_close(loss, total / len(fakes))


def test_relativistic_generator_loss_pairs_each_fake_with_its_real() -> None:
    batch, networks = make_batch(), make_networks(discriminator=Linear(64))
    fakes = make_batch().images.flip(0) * 0.5
    loss, _ = GAN(form="relativistic").loss("generator", "fakes", networks, batch, fakes)
    discriminator = networks.bare["discriminator"]
    pairs = [
        F.softplus(discriminator(r[None]) - discriminator(f[None])) for r, f in zip(batch.images, fakes, strict=True)
    ]
    torch.testing.assert_close(loss, torch.cat(pairs).mean())


def test_relativistic_logits_keep_their_loss_when_all_move_by_a_constant() -> None:
    class Shifted(Linear):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            return super().forward(images) + 100

    torch.manual_seed(0)
    plain, shifted = Linear(64), Shifted(64)
    shifted.load_state_dict(plain.state_dict())
    losses = []
    for discriminator in (plain, shifted):
        batch, networks = make_batch(), make_networks(discriminator=discriminator)
        objective = GAN(form="relativistic")
        losses.append(objective.loss("discriminator", "pairs", networks, batch, -batch.images)[0])
    torch.testing.assert_close(*losses, atol=1e-4, rtol=0)


def test_unit_gradient_penalty_of_a_linear_discriminator_is_the_distance_of_its_weight_from_length_one() -> None:
    discriminator, samples = Linear(64), torch.randn(5, 1, 8, 8, requires_grad=True)
    penalty = unit_gradient_penalty(samples, discriminator(samples))
    torch.testing.assert_close(penalty, (discriminator.layer.weight.norm() - 1).square().expand(5))


def test_unit_gradient_penalty_of_a_flat_discriminator_has_finite_gradients() -> None:
    discriminator, samples = Linear(64), torch.randn(5, 1, 8, 8, requires_grad=True)
    nn.init.zeros_(discriminator.layer.weight)
    unit_gradient_penalty(samples, discriminator(samples)).sum().backward()
    assert discriminator.layer.weight.grad is not None and discriminator.layer.weight.grad.isfinite().all()


def test_gradient_penalty_is_taken_at_points_between_real_and_fake_that_the_step_draws() -> None:
    batch, networks = make_batch(), make_networks(discriminator=HalfSquare())
    fakes = torch.zeros(4, 1, 8, 8)
    loss, _ = GAN(gradient_penalty=3.0).loss("discriminator", "interpolates", networks, batch, fakes)
    shares = batch.draws.uniform("interpolates", 1, 1, 1)
    lengths = ((1 - shares) * batch.images).flatten(1).norm(dim=1)
    torch.testing.assert_close(loss, 3 * (lengths - 1).square().mean())


def test_interpolates_with_share_zero_are_reals_and_with_one_fakes() -> None:
    reals, fakes = make_batch().images, torch.zeros(4, 1, 8, 8)
    ends = [interpolates(reals, fakes, torch.full((4, 1, 1, 1), share)) for share in (0.0, 1.0)]
    assert torch.equal(ends[0], reals) and torch.equal(ends[1], fakes)


@pytest.mark.parametrize("side", ["reals", "fakes"])
def test_gamma_penalises_the_side_that_was_named_and_no_other(side: Any) -> None:
    batch, networks = make_batch(), make_networks()
    objective = GAN(gamma=1.0, penalised=side)
    metrics = run_phase(objective, "discriminator", networks, batch, objective.prepare(networks, batch))
    assert {"discriminator/r1", "discriminator/r2"} & metrics.keys() == {
        "discriminator/r1" if side == "reals" else "discriminator/r2"
    }


@pytest.mark.parametrize("form", ["non-saturating", "hinge", "least-squares", "wasserstein", "relativistic"])
def test_last_part_of_every_form_with_every_penalty_reaches_every_parameter(form: Any) -> None:
    objective = GAN(form=form, gamma=1.0, penalised="both", gradient_penalty=10.0)
    batch, networks = make_batch(), make_networks()
    last = objective.phases[0].parts[-1]
    objective.loss("discriminator", last, networks, batch, objective.prepare(networks, batch))[0].backward()
    assert all(parameter.grad is not None for parameter in networks.bare["discriminator"].parameters())


def test_unit_gradient_penalty_through_batch_norm_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        GAN(gradient_penalty=10.0).check(DCGAN())
    assert str(caught.value) == (
        "objective.gradient_penalty=10.0 penalises a gradient per sample, and model.discriminator_norm='batch' mixes "
        "the samples of a batch; set --model.discriminator-norm none, or --objective.gradient-penalty 0"
    )


def test_relativistic_labels_are_those_of_real_and_fake_of_the_pair() -> None:
    model = DCGAN(width=4, latent_dim=6, discriminator_norm="none", conditional=True)
    batch, networks = make_batch(), make_networks(model)
    nn.init.normal_(networks.bare["discriminator"].embedding.weight)  # type: ignore[union-attr,arg-type]
    objective = GAN(form="relativistic")
    fakes = objective.prepare(networks, batch)
    loss, _ = objective.loss("discriminator", "pairs", networks, batch, fakes)
    discriminator = networks.bare["discriminator"]
    apart = F.softplus(discriminator(fakes, batch.labels) - discriminator(batch.images, batch.labels)).mean()
    torch.testing.assert_close(loss, apart)


@pytest.mark.parametrize("form", ["hinge", "relativistic"])
def test_consistency_is_the_squared_change_of_logits_of_images_that_move(form: Any) -> None:
    batch, networks = make_batch(), make_networks(discriminator=Linear(64))
    discriminator, fakes = networks.bare["discriminator"], make_batch().images.flip(0) * 0.5
    draws = batch.draws.uniform("consistency", 2)
    parts = GAN(form=form).phases[0].parts
    for part in parts:
        plain, _ = GAN(form=form).loss("discriminator", part, networks, batch, fakes)
        loss, _ = GAN(form=form, consistency=10.0).loss("discriminator", part, networks, batch, fakes)
        sides = {"reals": [batch.images], "fakes": [fakes], "pairs": [batch.images, fakes]}[part]
        changes = [(discriminator(x) - discriminator(translate(x, draws))).square().mean() for x in sides]
        torch.testing.assert_close(loss - plain, 10 * sum(changes), atol=1e-5, rtol=1e-5)
        assert sum(changes) > 0


@pytest.mark.parametrize("side", ["reals", "fakes"])
def test_consistency_is_asked_of_the_side_that_was_named_and_no_other(side: Any) -> None:
    batch, networks = make_batch(), make_networks(discriminator=Linear(64))
    fakes = batch.images.flip(0) * 0.5
    objective = GAN(form="relativistic", consistency=10.0, consistent=side)
    loss, metrics = objective.loss("discriminator", "pairs", networks, batch, fakes)
    plain, _ = GAN(form="relativistic").loss("discriminator", "pairs", networks, batch, fakes)
    assert {key for key in metrics if "consistency" in key} == {f"discriminator/consistency_{side}"}
    torch.testing.assert_close(loss - plain, 10 * metrics[f"discriminator/consistency_{side}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["hinge", "relativistic"])
def test_gradients_are_penalised_at_the_samples_before_their_augmentation(form: Any) -> None:
    objective = GAN(form=form, gamma=1.0, penalised="both", augment=("color", "cutout"))
    batch, networks = make_batch(), make_networks()
    fakes, discriminator = batch.images.flip(0) * 0.5, networks.bare["discriminator"]
    found = run_phase(objective, "discriminator", networks, batch, fakes)
    for side, name, images in (("reals", "r1", batch.images), ("fakes", "r2", fakes)):
        draws = batch.draws.uniform(f"augment/{side}", NUM_DRAWS)
        samples = images.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(discriminator(augment(samples, draws, objective.augment, 1.0)).sum(), samples)
        expected = slopes.square().flatten(1).sum(dim=1).mean()
        torch.testing.assert_close(found[f"discriminator/{name}"], expected, atol=1e-6, rtol=1e-4)
        shown = augment(images, draws, objective.augment, 1.0).requires_grad_()
        (others,) = torch.autograd.grad(discriminator(shown).sum(), shown)
        assert (others.square().flatten(1).sum(dim=1).mean() / expected - 1).abs() > 0.05


class Recording(nn.Module):
    """A discriminator that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        self.shown.append(images.detach().clone())
        return self.scale * images.flatten(1).sum(dim=1)


def test_discriminator_is_shown_reals_and_fakes_augmented_by_draws_of_their_own_in_both_phases() -> None:
    objective = GAN(form="relativistic", augment=("color", "translation"))
    batch, networks = make_batch(), make_networks(discriminator=Recording())
    fakes = objective.prepare(networks, batch)
    objective.loss("discriminator", "pairs", networks, batch, fakes)
    objective.loss("generator", "fakes", networks, batch, fakes)
    streams = [("reals", batch.images), ("fakes", fakes), ("generator", fakes), ("generator/reals", batch.images)]
    reals, others, of_generator, beside = (
        augment(images.detach(), batch.draws.uniform(f"augment/{stream}", NUM_DRAWS), objective.augment, 1.0)
        for stream, images in streams
    )
    shown: Any = networks.bare["discriminator"]
    for found, expected in zip(shown.shown, (torch.cat([reals, others]), of_generator, beside), strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(reals, beside) and not torch.equal(others, of_generator)


def test_lecam_is_the_squared_distance_from_the_mean_of_the_other_side() -> None:
    objective = GAN(form="wasserstein", lecam=0.5)
    networks = make_networks(discriminator=Constant(2.0), **objective.state())
    means = networks.bare["logit_means"]
    means.reals.fill_(1.5), means.fakes.fill_(-1.0)  # type: ignore[union-attr,operator]
    losses = [
        objective.loss("discriminator", side, networks, make_batch(), make_batch().images)[0].item()
        for side in ("fakes", "reals")
    ]
    after_fakes = -1.0 + 0.01 * (2.0 + 1.0)
    assert losses == pytest.approx([2 + 0.5 * 0.5**2, -2 + 0.5 * (2 - after_fakes) ** 2])


def test_lecam_means_move_by_a_hundredth_of_the_way_to_the_mean_of_the_logits() -> None:
    means = LogitMeans()
    means.update("reals", torch.tensor([1.0, 3.0]))
    means.update("fakes", torch.tensor([-4.0]))
    torch.testing.assert_close(torch.stack([means.reals, means.fakes]), torch.tensor([0.02, -0.04]))

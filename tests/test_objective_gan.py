"""Adversarial losses against closed forms, the gradient penalty, and fakes that both phases share."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models import MODELS
from genray.models.dcgan import DCGAN
from genray.objectives import Batch, Networks
from genray.objectives.gan import GAN
from genray.objectives.penalties import zero_centered_gradient_penalty
from genray.streams import Draws

PENALISED = DCGAN(width=4, latent_dim=6, discriminator_norm="none")


class Constant(nn.Module):
    """A discriminator that gives every image one logit."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.logit.expand(len(images))


class Linear(nn.Module):
    """The discriminator D(x) = w . x."""

    def __init__(self, num_pixels: int, end: str = "(B,)") -> None:
        super().__init__()
        self.layer = nn.Linear(num_pixels, 1, bias=False)
        self.end = end

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits.flatten() if self.end == "(B,)" else logits


def make_batch(num: int = 4, step: int = 0) -> Batch:
    images = torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = Draws(seed=0, step=step, num_global=num, start=0, stop=num, device=torch.device("cpu"))
    return Batch(images=images, labels=torch.arange(num) % 10, step=step, samples_seen=step * num, draws=draws)


def make_networks(model: DCGAN = PENALISED, **replaced: nn.Module) -> Networks:
    torch.manual_seed(0)
    networks = model.build((1, 8, 8), 10) | replaced
    return Networks(networks, networks)


def run_phase(objective: GAN, phase: str, networks: Networks, batch: Batch, shared: Any) -> dict[str, Tensor]:
    """Metrics of a phase whose gradients were accumulated as the trainer does it."""
    metrics: dict[str, Tensor] = {}
    for name, module in networks.bare.items():
        module.requires_grad_(name == phase)
    for part in next(p for p in objective.phases if p.module == phase).parts:
        loss, logged = objective.loss(phase, part, networks, batch, shared)
        loss.backward()
        metrics |= logged
    for module in networks.bare.values():
        module.requires_grad_(True)
    return metrics


def part_losses(objective: GAN, networks: Networks) -> list[float]:
    """Losses of reals, fakes and generator."""
    batch = make_batch()
    shared = objective.prepare(networks, batch)
    parts = [("discriminator", "reals"), ("discriminator", "fakes"), ("generator", "fakes")]
    return [objective.loss(phase, part, networks, batch, shared)[0].item() for phase, part in parts]


@pytest.mark.parametrize("logit", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize(
    ("form", "reals", "fakes", "generator"),
    [
        ("non-saturating", lambda d: math.log1p(math.exp(-d)), lambda d: math.log1p(math.exp(d)), None),
        ("hinge", lambda d: max(0.0, 1 - d), lambda d: max(0.0, 1 + d), lambda d: -d),
    ],
)
def test_gan_losses_of_a_constant_logit_equal_their_closed_forms(
    form: Any, reals: Any, fakes: Any, generator: Any, logit: float
) -> None:
    losses = part_losses(GAN(form=form), make_networks(discriminator=Constant(logit)))
    assert losses == pytest.approx([reals(logit), fakes(logit), (generator or reals)(logit)], abs=1e-6)


def test_gan_non_saturating_losses_are_ln2_at_logit_zero() -> None:
    losses = part_losses(GAN(), make_networks(discriminator=Constant(0.0)))
    assert losses == pytest.approx([math.log(2)] * 3)


def test_gan_accuracies_are_the_shares_on_the_right_side_of_zero() -> None:
    class FirstPixel(nn.Module):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            return images[:, 0, 0, 0]

    objective, batch, networks = GAN(), make_batch(), make_networks(discriminator=FirstPixel())
    batch.images[:, 0, 0, 0] = torch.tensor([0.5, -0.5, 0.5, 0.5])
    fakes = torch.zeros(4, 1, 8, 8)
    fakes[:, 0, 0, 0] = torch.tensor([-0.5, -0.5, 0.5, -0.5])
    _, reals_metrics = objective.loss("discriminator", "reals", networks, batch, fakes)
    _, fakes_metrics = objective.loss("discriminator", "fakes", networks, batch, fakes)
    assert reals_metrics["discriminator/accuracy_reals"].item() == 0.75
    assert fakes_metrics["discriminator/accuracy_fakes"].item() == 0.75


def test_gradient_penalty_of_a_linear_discriminator_is_its_squared_weight() -> None:
    discriminator, samples = Linear(64), torch.randn(5, 1, 8, 8, requires_grad=True)
    penalty = zero_centered_gradient_penalty(samples, discriminator(samples))
    torch.testing.assert_close(penalty, discriminator.layer.weight.square().sum().expand(5))


def test_gradient_penalty_of_each_sample_is_its_own() -> None:
    samples = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    logits = samples.square().sum(dim=1) / 2
    assert zero_centered_gradient_penalty(samples, logits).tolist() == [5.0, 25.0]


def test_gradient_penalty_refuses_a_column_of_logits() -> None:
    discriminator, samples = Linear(64, end="(B, 1)"), torch.randn(4, 1, 8, 8, requires_grad=True)
    with pytest.raises(ValueError) as caught:
        zero_centered_gradient_penalty(samples, discriminator(samples))
    assert str(caught.value) == (
        "logits must have shape (B,) = (4,), got (4, 1); end the discriminator with .flatten()"
    )


@pytest.mark.parametrize(
    ("phase", "part"), [("discriminator", "reals"), ("discriminator", "fakes"), ("generator", "fakes")]
)
def test_gan_refuses_a_column_of_logits_in_every_part(phase: str, part: str) -> None:
    objective, batch, networks = GAN(), make_batch(), make_networks(discriminator=Linear(64, end="(B, 1)"))
    shared = objective.prepare(networks, batch)
    with pytest.raises(
        ValueError, match=r"^logits must have shape \(B,\) = \(4,\), got \(4, 1\); end the discriminator"
    ):
        objective.loss(phase, part, networks, batch, shared)


def test_gan_gamma_adds_half_of_itself_times_the_penalty() -> None:
    batch, networks = make_batch(), make_networks(discriminator=Linear(64))
    plain, _ = GAN().loss("discriminator", "reals", networks, batch, batch.images)
    penalised, metrics = GAN(gamma=3.0).loss("discriminator", "reals", networks, batch, batch.images)
    squared = networks.bare["discriminator"].layer.weight.square().sum()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(metrics["discriminator/r1"], squared.detach())
    torch.testing.assert_close(penalised, plain + 1.5 * squared)


def test_gan_penalty_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    discriminator = PENALISED.build((1, 8, 8), 10)["discriminator"].double()
    for parameter in discriminator.parameters():
        parameter.data.normal_(0, 0.3)  # at the initial weights the penalty is too small to differentiate by hand
    reals, head = make_batch().images.double().requires_grad_(), discriminator.head.weight

    def penalty() -> Tensor:
        return zero_centered_gradient_penalty(reals, discriminator(reals)).mean()

    (analytic,) = torch.autograd.grad(penalty(), head)
    head.data[0, 3] += 1e-5
    above = penalty().item()
    head.data[0, 3] -= 2e-5
    below = penalty().item()
    assert analytic[0, 3].item() == pytest.approx((above - below) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_gan_phase_reaches_every_parameter_of_its_module_and_no_other(
    phase: str, gamma: float, conditional: bool
) -> None:
    model = DCGAN(width=4, latent_dim=6, discriminator_norm="none", conditional=conditional)
    objective, batch, networks = GAN(gamma=gamma), make_batch(), make_networks(model)
    run_phase(objective, phase, networks, batch, objective.prepare(networks, batch))
    reached = {name: [p.grad is not None for p in m.parameters()] for name, m in networks.bare.items()}
    assert all(reached.pop(phase))
    assert not any(reached.popitem()[1])


def test_gan_last_part_of_the_discriminator_reaches_every_parameter() -> None:
    objective, batch, networks = GAN(gamma=1.0), make_batch(), make_networks()
    loss, _ = objective.loss("discriminator", "fakes", networks, batch, objective.prepare(networks, batch))
    loss.backward()
    assert all(parameter.grad is not None for parameter in networks.bare["discriminator"].parameters())


def test_gan_reused_fakes_give_the_generator_the_gradients_of_a_fresh_pass() -> None:
    objective, batch, networks = GAN(), make_batch(), make_networks()
    generator, discriminator = (copy.deepcopy(networks.bare[name]) for name in ("generator", "discriminator"))
    shared = objective.prepare(networks, batch)
    run_phase(objective, "discriminator", networks, batch, shared)
    run_phase(objective, "generator", networks, batch, shared)
    F.softplus(-discriminator(generator(batch.draws.normal("latents", 6)))).mean().backward()
    for reused, fresh in zip(networks.bare["generator"].parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(reused.grad, fresh.grad)


def test_gan_fakes_carry_a_graph_only_in_steps_that_update_the_generator() -> None:
    objective, networks = GAN(num_discriminator_steps=3), make_networks()
    carried = [objective.prepare(networks, make_batch(step=step)).requires_grad for step in range(6)]
    assert carried == [False, False, True, False, False, True]


def test_gan_gives_reals_and_fakes_the_same_labels() -> None:
    class Recorder(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.seen = inner, []

        def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
            self.seen.append(labels)
            result: Tensor = self.inner(inputs, labels)
            return result

    objective, batch = GAN(), make_batch()
    bare = DCGAN(width=4, latent_dim=6, conditional=True).build((1, 8, 8), 10)
    wrapped = {name: Recorder(module) for name, module in bare.items()}
    networks = Networks(bare, wrapped)
    run_phase(objective, "discriminator", networks, batch, objective.prepare(networks, batch))
    assert all(torch.equal(labels, batch.labels) for module in wrapped.values() for labels in module.seen)
    assert [len(wrapped[name].seen) for name in ("generator", "discriminator")] == [1, 2]


def test_gan_penalty_in_bf16_equals_that_in_fp32() -> None:
    batch, networks = make_batch(), make_networks()
    objective = GAN(gamma=1.0)
    _, exact = objective.loss("discriminator", "reals", networks, batch, batch.images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, metrics = objective.loss("discriminator", "reals", networks, batch, batch.images)
    assert torch.equal(metrics["discriminator/r1"], exact["discriminator/r1"])


def test_gan_leaves_the_images_of_the_batch_without_a_gradient() -> None:
    batch, networks = make_batch(), make_networks()
    loss, _ = GAN(gamma=1.0).loss("discriminator", "reals", networks, batch, batch.images)
    loss.backward()
    assert not batch.images.requires_grad and batch.images.grad is None


def test_gan_metrics_are_detached_scalars() -> None:
    objective, batch, networks = GAN(gamma=1.0), make_batch(), make_networks()
    shared = objective.prepare(networks, batch)
    metrics = run_phase(objective, "discriminator", networks, batch, shared)
    metrics |= run_phase(objective, "generator", networks, batch, shared)
    assert {(value.ndim, value.requires_grad) for value in metrics.values()} == {(0, False)}
    assert sorted(metrics) == [
        "discriminator/accuracy_fakes",
        "discriminator/accuracy_reals",
        "discriminator/logits_fakes",
        "discriminator/logits_reals",
        "discriminator/loss_fakes",
        "discriminator/loss_reals",
        "discriminator/r1",
        "generator/loss",
    ]


@pytest.mark.parametrize(("name", "has"), [("mlp-vae", "vae"), ("resnet-classifier", "classifier")])
def test_gan_refuses_models_of_other_modules(name: str, has: str) -> None:
    with pytest.raises(ValueError) as caught:
        GAN().check(MODELS[name]())
    assert str(caught.value) == (
        f"objective gan trains generator and discriminator, and model {name} has {has}; "
        "choose model biggan or dcgan or r3gan or sngan or stylegan2"
    )


def test_gan_refuses_a_gradient_penalty_through_batch_norm() -> None:
    with pytest.raises(ValueError) as caught:
        GAN(gamma=1.0).check(DCGAN())
    assert str(caught.value) == (
        "objective.gamma=1.0 penalises a gradient per sample, and model.discriminator_norm='batch' mixes the samples "
        "of a batch; set --model.discriminator-norm none, or --objective.gamma 0"
    )


def test_gan_accepts_a_gradient_penalty_without_batch_norm() -> None:
    GAN(gamma=1.0).check(PENALISED)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gamma": -1.0}, "objective.gamma=-1.0 must be at least 0"),
        ({"gamma": math.nan}, "objective.gamma=nan must be at least 0"),
        ({"num_discriminator_steps": 0}, "objective.num_discriminator_steps=0 must be at least 1"),
        ({"gradient_penalty": -1.0}, "objective.gradient_penalty=-1.0 must be at least 0"),
        ({"augment_probability": 1.5}, "objective.augment_probability=1.5 must lie in [0, 1]"),
        (
            {"augment_probability": 0.5},
            "objective.augment_probability=0.5, and objective.augment names no operations; set it to 1, or "
            "--objective.augment color translation",
        ),
        (
            {"augment_probability": 0.5, "augment": ("color",), "augment_target": 0.6},
            "objective.augment_probability=0.5, and objective.augment_target chooses it; set it to 1, or "
            "--objective.augment-target None",
        ),
        (
            {"augment_target": 0.6},
            "objective.augment_target=0.6 steers operations, and objective.augment names none; "
            "set --objective.augment color translation cutout",
        ),
        (
            {"augment_target": 0.6, "augment": ("color",), "form": "relativistic"},
            "objective.augment_target=0.6 reads the sign of logits, and those of form='relativistic' have no zero; "
            "anneal objective.augment_probability instead",
        ),
    ],
)
def test_gan_refuses_knobs_out_of_range(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        GAN(**knobs)
    assert str(caught.value) == message

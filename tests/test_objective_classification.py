"""Cross-entropy of a classifier, and one that learns to read digits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models import MODELS
from genray.models.resnet import ResNetClassifier
from genray.objectives import Batch, Networks
from genray.objectives.classification import Classification
from genray.streams import Draws


class Logits(nn.Module):
    """A classifier whose image is its logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def make_batch(images: Tensor, labels: Tensor, step: int = 0) -> Batch:
    num = len(images)
    draws = Draws(seed=0, step=step, num_global=num, start=0, stop=num, device=torch.device("cpu"))
    return Batch(images=images, labels=labels, step=step, samples_seen=step * num, draws=draws)


def make_networks(classifier: nn.Module) -> Networks:
    return Networks({"classifier": classifier}, {"classifier": classifier})


def one_loss(objective: Classification, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    shared = objective.prepare(networks, batch)  # type: ignore[func-returns-value]
    return objective.loss("classifier", "all", networks, batch, shared)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_classification_of_even_logits_costs_the_logarithm_of_the_number_of_classes(label_smoothing: float) -> None:
    batch = make_batch(torch.zeros(4, 10, 1, 1), torch.arange(4))
    loss, _ = one_loss(Classification(label_smoothing=label_smoothing), make_networks(Logits()), batch)
    assert loss.item() == pytest.approx(math.log(10))


def test_classification_smoothing_spreads_its_share_over_all_classes() -> None:
    logits, labels = torch.randn(6, 10, 1, 1), torch.arange(6)
    loss, _ = one_loss(Classification(label_smoothing=0.2), make_networks(Logits()), make_batch(logits, labels))
    targets = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    torch.testing.assert_close(loss, -(targets * logits.flatten(1).log_softmax(dim=1)).sum(dim=1).mean())


def test_classification_class_weights_multiply_the_loss_of_their_images() -> None:
    logits, labels, weights = torch.randn(6, 3, 1, 1), torch.tensor([0, 1, 2, 0, 1, 2]), (0.5, 2.0, 0.0)
    loss, _ = one_loss(Classification(class_weights=weights), make_networks(Logits()), make_batch(logits, labels))
    each = F.cross_entropy(logits.flatten(1), labels, reduction="none")
    torch.testing.assert_close(loss, (each * torch.tensor(weights)[labels]).mean())


def test_classification_weighted_loss_of_two_halves_is_that_of_the_whole() -> None:
    objective = Classification(class_weights=(0.5, 2.0, 3.0), label_smoothing=0.1)
    logits, labels = torch.randn(6, 3, 1, 1), torch.tensor([0, 0, 0, 1, 1, 2])
    parts = [
        one_loss(objective, make_networks(Logits()), make_batch(logits[s], labels[s]))[0]
        for s in (slice(3), slice(3, 6), slice(6))
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, parts[2])


def test_classification_focal_loss_of_even_logits_is_scaled_by_what_is_missing() -> None:
    batch = make_batch(torch.zeros(4, 10, 1, 1), torch.arange(4))
    loss, _ = one_loss(Classification(focal_gamma=2.0), make_networks(Logits()), batch)
    assert loss.item() == pytest.approx(0.9**2 * math.log(10))


def test_classification_focal_loss_of_a_sure_image_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    networks = make_networks(Logits())
    loss, _ = one_loss(
        Classification(focal_gamma=0.5), networks, make_batch(logits[:, :, None, None], torch.tensor([0]))
    )
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"focal_gamma": -1.0}, "objective.focal_gamma=-1.0 must be at least 0; 2 is usual"),
        (
            {"class_weights": (1.0, -1.0)},
            "objective.class_weights=(1.0, -1.0) must be numbers of at least 0, and not all of them 0",
        ),
        (
            {"class_weights": (0.0, 0.0)},
            "objective.class_weights=(0.0, 0.0) must be numbers of at least 0, and not all of them 0",
        ),
    ],
)
def test_classification_refuses_weights_that_weigh_nothing(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Classification(**knobs)
    assert str(caught.value) == message


def test_classification_accuracy_is_the_share_of_largest_logits_that_are_true() -> None:
    logits = 3 * F.one_hot(torch.tensor([0, 1, 2, 9]), 10).float()[:, :, None, None]
    _, metrics = one_loss(Classification(), make_networks(Logits()), make_batch(logits, torch.arange(4)))
    assert metrics["classifier/accuracy"].item() == 0.75


def test_classification_reaches_every_parameter() -> None:
    networks = make_networks(ResNetClassifier(width=4).build((1, 8, 8), 10)["classifier"])
    loss, _ = one_loss(Classification(), networks, make_batch(torch.randn(4, 1, 8, 8), torch.arange(4)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in networks.bare["classifier"].parameters())


def test_classification_metrics_are_detached_scalars() -> None:
    networks = make_networks(ResNetClassifier(width=4).build((1, 8, 8), 10)["classifier"])
    _, metrics = one_loss(Classification(), networks, make_batch(torch.randn(4, 1, 8, 8), torch.arange(4)))
    assert {name: (value.ndim, value.requires_grad) for name, value in metrics.items()} == {
        "classifier/loss": (0, False),
        "classifier/accuracy": (0, False),
    }


@pytest.mark.parametrize(("name", "has"), [("dcgan", "generator and discriminator"), ("conv-vae", "vae")])
def test_classification_refuses_models_of_other_modules(name: str, has: str) -> None:
    with pytest.raises(ValueError) as caught:
        Classification().check(MODELS[name]())
    assert str(caught.value) == (
        f"objective classification trains classifier, and model {name} has {has}; "
        "choose model conv-vae-classifier or dcgan-classifier or resnet-classifier or sngan-classifier or "
        "torchvision-resnet"
    )


def test_classification_names_an_unregistered_model_by_its_class() -> None:
    class Mystery:
        pass

    mystery: Any = Mystery()
    with pytest.raises(ValueError, match=r"and model Mystery has no such module; choose model conv-vae-classifier or "):
        Classification().check(mystery)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_classification_refuses_label_smoothing_out_of_range(label_smoothing: float) -> None:
    with pytest.raises(ValueError) as caught:
        Classification(label_smoothing=label_smoothing)
    assert str(caught.value) == f"objective.label_smoothing={label_smoothing!r} must lie in [0, 1), e.g. 0.1"


def test_classifier_reads_unseen_digits() -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels, order = torch.tensor(digits.target), torch.randperm(1797)
    images, labels = images[order], labels[order]
    networks = make_networks(ResNetClassifier(width=8).build((1, 8, 8), 10)["classifier"])
    optimizer = torch.optim.Adam(networks.bare["classifier"].parameters(), 3e-3)
    for step in range(120):
        chosen = torch.arange(step * 64, (step + 1) * 64) % 1437
        loss, _ = one_loss(Classification(), networks, make_batch(images[chosen], labels[chosen], step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier = networks.bare["classifier"].eval()
    with torch.no_grad():
        accuracy = (classifier(images[1437:]).argmax(dim=1) == labels[1437:]).float().mean().item()
    assert accuracy > 0.95

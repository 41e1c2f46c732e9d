"""A discriminator that names classes: its losses, its place in a snapshot, its scores."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from evaluation_snapshots import save_classifier
from gan_cases import CLASSIFYING
from test_objective_gan import make_batch, make_networks, part_losses, run_phase
from test_transfer import classifier_config, started
from torch import Tensor, nn
from torch.nn import functional as F

from genray import checkpoint, snapshot
from genray.cli_classify import probabilities_of
from genray.config import Config, Data, Eval, Optim, Train
from genray.data.images import ImageSet, load_images
from genray.distributed import current
from genray.errors import CheckpointError, ConfigError
from genray.evaluation.accuracy import accuracy, confusion_matrix
from genray.evaluation.scoring import score_snapshot
from genray.models.dcgan import DCGAN, DCGANClassifier
from genray.models.sngan import SNGAN
from genray.objectives.gan import GAN
from genray.sampling import generate, latents, save_png, to_float
from genray.search import Search, racing_metrics
from genray.storage import RunFolder
from genray.trainer import train

MODELS: dict[str, Any] = {
    "dcgan": CLASSIFYING,
    "sngan": SNGAN(latent_dim=8, width=8, discriminator_width=8, conditional=True, conditioning="auxiliary-classifier"),
}


class Named(nn.Module):
    """A discriminator that gives every image logit 0 and the same logits of ten classes."""

    def __init__(self, class_logits: Tensor) -> None:
        super().__init__()
        self.class_logits = nn.Parameter(class_logits)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        zero = 0 * self.class_logits.sum()
        return zero.expand(len(images)), self.class_logits.expand(len(images), -1)


def config_of(model: Any = CLASSIFYING, num_steps: int = 2, **train: Any) -> Config:
    return tiny_config(
        model=model,
        objective=GAN(class_loss=1.0, gamma=0.1),
        optim=Optim(lr=2e-3, betas=(0.5, 0.99)),
        train=Train(num_steps=num_steps, checkpoint_every=num_steps, sample_every=0, **train),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: ImageSet) -> RunFolder:
    """A run of 200 steps, with its last checkpoint and snapshot."""
    config = config_of(replace(CLASSIFYING, width=16), 200, global_batch_size=32, ema_half_life=500)
    folder = RunFolder.open(str(tmp_path_factory.mktemp("acgan")), "run")
    train(config, digits, folder, current(use_gpu=False))
    return folder


@pytest.fixture(scope="module")
def place(run: RunFolder) -> Path:
    return next((run.local / "snapshots").iterdir())


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_acgan_adds_the_weighted_cross_entropy_to_every_part_of_both_phases(weight: float) -> None:
    told = torch.linspace(-1, 2, 10)
    losses = part_losses(GAN(class_loss=weight), make_networks(CLASSIFYING, discriminator=Named(told)))
    expected = F.cross_entropy(told.expand(4, -1), make_batch().labels).item()
    assert losses == pytest.approx([math.log(2) + weight * expected] * 3)


def test_acgan_relativistic_pairs_pay_for_the_classes_of_reals_and_of_fakes() -> None:
    networks, batch = make_networks(CLASSIFYING, discriminator=Named(torch.zeros(10))), make_batch()
    objective = GAN(form="relativistic", class_loss=1.0)
    loss, metrics = objective.loss("discriminator", "pairs", networks, batch, objective.prepare(networks, batch))
    assert loss.item() == pytest.approx(math.log(2) + 2 * math.log(10))
    assert {name for name in metrics if "class_loss" in name} == {
        "discriminator/class_loss_reals",
        "discriminator/class_loss_fakes",
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["hinge", "relativistic"])
def test_acgan_reaches_every_parameter_of_both_networks(name: str, form: Any) -> None:
    objective, networks, batch = GAN(form=form, class_loss=1.0), make_networks(MODELS[name]), make_batch()
    shared = objective.prepare(networks, batch)
    for phase in ("discriminator", "generator"):
        run_phase(objective, phase, networks, batch, shared)
        missing = [key for key, p in networks.bare[phase].named_parameters() if p.grad is None]
        assert missing == []


@pytest.mark.parametrize("name", MODELS)
def test_acgan_discriminator_judges_whatever_labels_it_is_given_and_its_classifier_is_its_second_answer(
    name: str,
) -> None:
    discriminator: Any = MODELS[name].build((1, 8, 8), 10)["discriminator"].eval()
    images = torch.randn(3, 1, 8, 8)
    logits, classes = discriminator(images, torch.tensor([0, 1, 2]))
    others, _ = discriminator(images, torch.tensor([5, 5, 5]))
    assert logits.shape == (3,) and torch.equal(logits, others)
    torch.testing.assert_close(discriminator.classifier()(images), classes)


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (
            CLASSIFYING,
            {},
            "model.conditioning='auxiliary-classifier' learns from objective.class_loss=0.0 nothing; set ",
        ),
        (DCGAN(conditional=True), {"class_loss": 1.0}, "objective.class_loss=1.0 is for a discriminator that names "),
    ],
)
def test_acgan_refuses_a_classifier_without_a_loss_and_a_loss_without_a_classifier(
    model: Any, objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(model=model, objective=GAN(**objective))


@pytest.mark.parametrize("cls", [DCGAN, SNGAN])
def test_acgan_without_labels_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"^model\.conditioning='auxiliary-classifier' needs class labels, and "):
        cls(conditioning="auxiliary-classifier")


def test_acgan_snapshot_holds_the_discriminator_of_its_checkpoint_as_a_classifier(run: RunFolder, place: Path) -> None:
    made, images = snapshot.load(place), torch.randn(5, 1, 8, 8)
    found = checkpoint.load(run, 200)
    networks = made.config.model.build((1, 8, 8), 10)
    discriminator: Any = networks["discriminator"]
    discriminator.load_state_dict(found.under("modules/discriminator/"))
    assert made.classifier is not None
    assert torch.equal(made.classifier(images), discriminator.eval()(images)[1])
    generator: Any = networks["generator"]
    generator.load_state_dict(found.under("ema/"))
    z, labels = latents(4, 8, 0), torch.arange(4)
    assert torch.equal(generate(made.module, z, labels), generate(generator, z, labels))


def test_acgan_learns_to_name_unseen_digits(place: Path) -> None:
    test, made = load_images(Data(name="digits"), "test"), snapshot.load(place)
    assert made.classifier is not None
    right = made.classifier(to_float(test.images)).argmax(1) == test.labels
    assert right.float().mean() > 0.85


def test_acgan_fakes_are_of_the_class_that_was_asked_for(place: Path) -> None:
    made, labels = snapshot.load(place), torch.arange(200) % 10
    assert made.classifier is not None
    named = made.classifier(to_float(generate(made.module, latents(200, 8, 0), labels))).argmax(1)
    assert (named == labels).float().mean() > 0.8


def test_acgan_is_scored_as_a_generator_first_and_then_as_a_classifier(place: Path, tmp_path: Path) -> None:
    data, extractor = Data(name="digits"), save_classifier(tmp_path / "extractor")
    settings = Eval(num_samples=64, num_seeds=2, metrics=("accuracy", "f1", "kid"))
    scores = {s.metric: s for s in score_snapshot(place, data=data, settings=settings, extractor=extractor)}
    assert list(scores) == ["fid", "accuracy", "f1", "kid"]
    test, made = load_images(data, "test"), snapshot.load(place)
    assert made.classifier is not None
    predicted = made.classifier(to_float(test.images)).argmax(1)
    found = scores["accuracy"]
    assert (found.value, found.spread) == accuracy(predicted, test.labels)
    assert found.details["confusion"] == confusion_matrix(predicted, test.labels, 10).tolist()
    assert (found.protocol.ema, scores["fid"].protocol.ema) == (False, True)
    assert (found.protocol.num_samples, found.protocol.extractor) == (len(test), "none")


def test_acgan_without_metrics_named_has_its_accuracy_taken(place: Path, tmp_path: Path) -> None:
    extractor = save_classifier(tmp_path / "extractor")
    settings = Eval(num_samples=64, num_seeds=1)
    scores = score_snapshot(place, data=Data(name="digits"), settings=settings, extractor=extractor)
    assert [score.metric for score in scores][::6] == ["fid", "accuracy"]


def test_accuracy_is_a_metric_of_a_gan_that_names_classes_and_of_no_other() -> None:
    config = config_of()
    assert replace(config, eval=Eval(metrics=("accuracy",))).eval.metrics == ("accuracy",)
    assert racing_metrics(config, Search(metric=("accuracy",))) == ("accuracy",)
    with pytest.raises(ConfigError, match="unknown metric of a generator 'accuracy'"):
        tiny_config(eval=Eval(metrics=("accuracy",)))


def test_acgan_snapshot_without_its_classifier_is_refused(place: Path, tmp_path: Path) -> None:
    made = snapshot.load(place)
    torn = tmp_path / "torn"
    snapshot.save(
        torn,
        made.module.state_dict(),
        made.config,
        step=1,
        samples_seen=1,
        classes=made.classes,
        data_digest=made.data_digest,
    )
    with pytest.raises(CheckpointError, match=r"does not hold what its config\.json says"):
        snapshot.load(torn)


def test_classify_takes_the_classifier_of_an_acgan(place: Path, tmp_path: Path) -> None:
    image, made = load_images(Data(name="digits"), "test").images[:1], snapshot.load(place)
    assert made.classifier is not None
    save_png(tmp_path / "digit.png", image[0].expand(3, -1, -1).permute(1, 2, 0).numpy())
    expected = made.classifier(to_float(image)).softmax(1)
    torch.testing.assert_close(probabilities_of(made, [tmp_path / "digit.png"]), expected)


def test_classifier_of_an_acgan_is_transferred_from_its_snapshot(place: Path, tmp_path: Path, digits: ImageSet) -> None:
    model = DCGANClassifier(width=16, discriminator_norm="none")
    found = started(classifier_config(model, source=str(place)), digits, tmp_path)
    made = snapshot.load(place)
    assert made.classifier is not None
    trunk = {k: v for k, v in made.classifier.state_dict().items() if k.startswith("layers.")}
    assert trunk and all(torch.equal(found[key], value) for key, value in trunk.items())

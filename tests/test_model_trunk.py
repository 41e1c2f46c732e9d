"""Classifiers with the trunk of a GAN's discriminator or of a VAE's encoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_snapshots import save, save_generator
from test_transfer import classifier_config, started, trained
from torch import Tensor, nn

from genray import snapshot
from genray.config import Optim, Train
from genray.data.images import ImageSet, load_images
from genray.distributed import current
from genray.errors import CheckpointError
from genray.evaluation.explain import grad_cam
from genray.models.dcgan import DCGAN, DCGANClassifier
from genray.models.sngan import SNGAN, SNGANClassifier
from genray.models.vae import ConvVAE
from genray.models.vae_classifier import ConvVAEClassifier
from genray.objectives.elbo import ELBO
from genray.presets import preset
from genray.sampling import to_float
from genray.start import read_weights
from genray.storage import RunFolder
from genray.trainer import train
from genray.transfer import take

PAIRS: dict[str, tuple[Any, Any]] = {
    "dcgan": (DCGAN(latent_dim=4, width=4, min_base=2), DCGANClassifier(width=4, min_base=2)),
    "sngan": (
        SNGAN(latent_dim=4, width=4, discriminator_width=4, attention=True),
        SNGANClassifier(discriminator_width=4, attention=True),
    ),
    "vae": (ConvVAE(latent_dim=4, width=4), ConvVAEClassifier(width=4)),
}
"""A model, and the classifier that has its trunk."""


def of_checkpoint(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"modules/{name}/{k}": v for name, network in networks.items() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("name", PAIRS)
def test_trunk_with_weights_taken_says_what_the_network_says_whose_they_are(name: str) -> None:
    source, model = PAIRS[name]
    networks, images = source.build((1, 8, 8), 10), torch.randn(3, 1, 8, 8)
    classifier = model.build((1, 8, 8), 10)["classifier"]
    take(classifier, of_checkpoint(networks), "x")
    own: Any = (networks.get("discriminator") or networks["vae"]).eval()
    head, expected = (own.encoder[-1], own.encoder(images)) if name == "vae" else (own.head, own(images))
    bias = 0 if head.bias is None else head.bias
    said = classifier.eval().features(images) @ head.weight.T + bias
    torch.testing.assert_close(said.view_as(expected), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_trunk_classifier_makes_nothing_anew_but_its_head(name: str) -> None:
    source, model = PAIRS[name]
    fit = take(model.build((1, 8, 8), 10)["classifier"], of_checkpoint(source.build((1, 8, 8), 10)), "x")
    assert fit.new == ("head.weight", "head.bias")
    assert fit.left and not set(fit.left) & set(fit.taken)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("digits-dcgan-classifier", "digits-dcgan"),
        ("digits-vae-classifier", "digits-vae"),
        ("mnist-dcgan-classifier", "mnist-dcgan"),
        ("mnist-sngan-classifier", "mnist-sngan"),
        ("mnist-vae-classifier", "mnist-vae"),
        ("mnist-vae-classifier", "mnist-rae"),
    ],
)
def test_trunk_preset_fits_the_preset_that_it_is_for_trained_without_labels(name: str, source: str) -> None:
    config, other = preset(name), preset(source)
    model: Any = replace(other.model, conditional=False)  # type: ignore[type-var]
    shape = config.data.image_shape
    fit = take(config.model.build(shape, 10)["classifier"], of_checkpoint(model.build(shape, 10)), source)
    assert fit.new == ("head.weight", "head.bias")


def test_trunk_comes_from_the_snapshot_of_a_vae(digits: ImageSet, tmp_path: Path) -> None:
    place = save(tmp_path / "vae", ConvVAE(latent_dim=4, width=4), ELBO(), seed=5)
    found = started(classifier_config(ConvVAEClassifier(width=4), source=str(place)), digits, tmp_path)
    tensors = read_weights(place)[0]
    trunk = [key for key in found if key.startswith("encoder.")]
    assert trunk and all(torch.equal(found[key], tensors[key]) for key in trunk)


def test_trunk_from_the_snapshot_of_a_generator_is_refused_and_sent_to_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a snapshot of a generator, .* give a checkpoint of its run"):
        read_weights(save_generator(tmp_path / "gan"))


@pytest.mark.parametrize("name", PAIRS)
def test_frozen_trunk_keeps_its_statistics_and_singular_vectors_too(
    name: str, digits: ImageSet, tmp_path: Path
) -> None:
    config = classifier_config(PAIRS[name][1], trunk_lr=0.0)
    after = trained(replace(config, train=replace(config.train, num_steps=2)), digits, tmp_path)
    more = trained(config, digits, tmp_path)
    assert {key for key, value in more.items() if not torch.equal(value, after[key])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", PAIRS)
def test_trunk_stages_are_the_network_and_its_head_comes_last(name: str) -> None:
    module: Any = PAIRS[name][1].build((1, 8, 8), 6)["classifier"]
    held = [id(p) for stage in module.stages for part in stage for p in part.parameters()]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
    assert len(module.stages) > 1 and module.stages[-1] == (module.head,)


@pytest.mark.parametrize("name", PAIRS)
def test_trunk_classifier_has_a_map_of_what_speaks_for_a_class(name: str) -> None:
    module: Any = PAIRS[name][1].build((1, 8, 8), 6)["classifier"].eval()
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    maps = grad_cam(module, images, torch.tensor([0, 1, 5]))
    assert maps.shape == (3, 8, 8) and maps.max() == 1


@pytest.mark.parametrize("name", PAIRS)
def test_trunk_classifier_needs_two_classes(name: str) -> None:
    with pytest.raises(ValueError, match=r"-classifier needs 2 classes or more, and the data have 1; set "):
        PAIRS[name][1].build((1, 8, 8), 1)


@pytest.mark.parametrize("name", PAIRS)
def test_trunk_classifier_resumed_ends_with_the_weights_of_a_run_untouched(
    name: str, digits: ImageSet, tmp_path: Path
) -> None:
    config = classifier_config(PAIRS[name][1], num_steps=4, thaw_samples=16)
    whole = trained(config, digits, tmp_path / "whole")
    trained(replace(config, train=replace(config.train, num_steps=2)), digits, tmp_path / "parts")
    parts = trained(config, digits, tmp_path / "parts")
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    ("model", "num_steps"),
    [
        (DCGANClassifier(width=16, min_base=2, discriminator_norm="none"), 80),
        (SNGANClassifier(discriminator_width=16), 200),
        (ConvVAEClassifier(width=16), 80),
    ],
)
def test_trunk_classifier_learns_to_read_unseen_digits(
    model: Any, num_steps: int, digits: ImageSet, tmp_path: Path
) -> None:
    steps = Train(
        num_steps=num_steps, global_batch_size=32, checkpoint_every=num_steps, sample_every=0, ema_half_life=0
    )
    config = replace(classifier_config(model), optim=Optim(name="adamw", lr=5e-3), train=steps)
    train(config, digits, RunFolder.open(str(tmp_path), "run"), current(False))
    (place,) = (tmp_path / "run" / "snapshots").iterdir()
    test = load_images(config.data, "test")
    right = snapshot.load(place).module(to_float(test.images)).argmax(1) == test.labels
    assert right.float().mean() > 0.8

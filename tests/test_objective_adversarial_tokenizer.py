"""Tokenizers before a discriminator: the adaptive weight, its warm-up, the perceptual term, a short run on digits."""

from dataclasses import replace

import evaluation_snapshots as snapshots
import pytest
import torch
from test_autoencoder_runs import autoencoder_config
from test_objective_elbo import make_batch
from test_trainer import assert_same_state, run

from genray import snapshot
from genray.config import Data
from genray.data.images import load_images
from genray.distributed import current
from genray.errors import CheckpointError, ConfigError
from genray.models.tokenizer import AdversarialTokenizer
from genray.objectives import Networks
from genray.objectives.adversarial_tokenizer import AdversarialTokenization, adaptive_weight, feature_distance
from genray.start import build_frozen
from genray.storage import RunFolder
from genray.trainer import train

MODEL = AdversarialTokenizer(num_codes=16, code_dim=4, width=8, num_downsamplings=1, discriminator_width=8)
KL = replace(MODEL, quantizer="none", code_dim=1)
AT_ONCE = AdversarialTokenization(adversarial_start_samples=0, adversarial_warmup_samples=0)


def test_adaptive_weight_gives_both_gradients_one_length() -> None:
    weights = torch.randn(5, requires_grad=True)
    loss, adversarial = (weights * 6).sum(), (weights.square() / 9).sum()
    weight = adaptive_weight(loss, adversarial, weights, most=1e4)
    (own,) = torch.autograd.grad(weight * adversarial, weights)
    assert own.norm().item() == pytest.approx(6 * 5**0.5, rel=1e-5)


def test_adaptive_weight_is_bounded_where_the_discriminator_has_no_gradient() -> None:
    weights = torch.randn(5, requires_grad=True)
    assert adaptive_weight(weights.sum(), (0 * weights).sum(), weights, most=30.0).item() == 30


@pytest.mark.parametrize(
    ("samples_seen", "share"), [(0, 0.0), (99, 0.0), (100, 0.0), (120, 0.5), (140, 1.0), (999, 1.0)]
)
def test_adversarial_gradient_begins_late_and_rises(samples_seen: int, share: float) -> None:
    objective = AdversarialTokenization(adversarial_start_samples=100, adversarial_warmup_samples=40)
    assert objective.warmth(samples_seen) == share


def losses_and_gradients(objective: AdversarialTokenization) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    bare = MODEL.build((1, 8, 8), 10)
    networks, batch = Networks(bare, bare), make_batch(torch.rand(6, 1, 8, 8) * 2 - 1)
    shared = objective.prepare(networks, batch)
    networks.require_gradients("tokenizer")
    objective.loss("tokenizer", "all", networks, batch, shared)[0].backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in bare["tokenizer"].named_parameters() if p.grad is not None}


def test_discriminator_has_no_part_in_the_decoders_gradient_before_its_start() -> None:
    without = losses_and_gradients(replace(AT_ONCE, adversarial=0.0))
    early = losses_and_gradients(replace(AT_ONCE, adversarial_start_samples=1))
    late = losses_and_gradients(AT_ONCE)
    assert all(torch.equal(early[name], without[name]) for name in without)
    assert not torch.equal(late["decoder.0.weight"], without["decoder.0.weight"])


def test_discriminator_loss_is_the_hinge_of_every_patch() -> None:
    bare = MODEL.build((1, 8, 8), 10)
    networks, batch = Networks(bare, bare), make_batch(torch.rand(6, 1, 8, 8) * 2 - 1)
    shared = AT_ONCE.prepare(networks, batch)
    reals, fakes = (AT_ONCE.loss("discriminator", part, networks, batch, shared)[0] for part in ("reals", "fakes"))
    on_reals = bare["discriminator"](batch.images)
    on_fakes = bare["discriminator"](2 * shared.logits.sigmoid() - 1)
    assert on_reals.shape == (6, 1, 2, 2)
    torch.testing.assert_close(reals, (1 - on_reals).clamp(min=0).mean())
    torch.testing.assert_close(fakes, (1 + on_fakes).clamp(min=0).mean())


def test_perceptual_term_compares_the_features_of_a_classifier(tmp_path) -> None:
    network = snapshot.load(snapshots.save_classifier(tmp_path / "classifier")).module.requires_grad_(False)
    images, fakes = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8, requires_grad=True)
    distances = feature_distance(network, images, fakes)
    a, b = network.features(images), network.features(fakes)
    torch.testing.assert_close(distances, 1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
    torch.testing.assert_close(feature_distance(network, images, images), torch.zeros(4), atol=1e-6, rtol=0)
    distances.sum().backward()
    assert fakes.grad is not None and all(p.grad is None for p in network.parameters())


def test_perceptual_term_of_no_classifier_is_refused(tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    for source, error, message in (
        (snapshots.save_vae(tmp_path / "vae"), ConfigError, "is a snapshot of a vae, expected a classifier's"),
        (tmp_path / "nothing", CheckpointError, "nothing"),
    ):
        config = autoencoder_config(MODEL, replace(AT_ONCE, perceptual=str(source)), 1)
        with pytest.raises(error, match=message):
            build_frozen(config, folder)
    large = replace(
        config,
        data=Data(name="mnist"),
        objective=replace(AT_ONCE, perceptual=str(snapshots.save_classifier(tmp_path / "c"))),
    )
    with pytest.raises(ConfigError, match=r"sees images of \(1, 8, 8\), and those of the run are \(1, 28, 28\)"):
        build_frozen(large, folder)


def test_adversarial_tokenizer_of_digits_reconstructs_better_by_training(tmp_path) -> None:
    classifier = snapshots.save_classifier(tmp_path / "classifier")
    errors = []
    for steps in (1, 120):
        objective = replace(AT_ONCE, perceptual=str(classifier), adversarial_start_samples=1000)
        config = autoencoder_config(MODEL, objective, steps, checkpoint_every=1000, log_every=40)
        folder = RunFolder.open(str(tmp_path / str(steps)), config.run.name)
        metrics = train(config, load_images(config.data, "train"), folder, current(False)).metrics
        errors.append(metrics["tokenizer/squared_error"])
    assert errors[1] < errors[0] / 2
    assert 0 < metrics["tokenizer/adversarial_weight"] <= 0.5e4


@pytest.mark.parametrize("model", [MODEL, KL], ids=["vq", "kl"])
def test_adversarial_tokenizer_resumed_from_a_checkpoint_ends_bit_identical(model, tmp_path) -> None:
    whole = run(autoencoder_config(model, AT_ONCE, 6), tmp_path / "whole")
    run(autoencoder_config(model, AT_ONCE, 3), tmp_path / "halves")
    halves = run(autoencoder_config(model, AT_ONCE, 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)

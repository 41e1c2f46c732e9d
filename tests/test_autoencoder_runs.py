"""Short runs of autoencoders on the digits: what improves, and exact resume of what changes while training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from test_trainer import assert_same_state, run

from genray import snapshot
from genray.anneal import Anneal, annealed
from genray.checkpoint import step_name
from genray.config import Cluster, Config, Data, Eval, Optim, Train
from genray.data.images import load_images
from genray.distributed import current
from genray.errors import ConfigError
from genray.estimate import memory_mb, seconds_per_step
from genray.evaluation.latent import reconstructions
from genray.evaluation.scoring import score_snapshot
from genray.models.hierarchical_vae import HierarchicalVAE
from genray.models.tokenizer import Tokenizer
from genray.models.vae import MLPVAE, AdversarialVAE
from genray.objectives.elbo import ELBO
from genray.objectives.latent_adversarial import LatentAdversarial
from genray.objectives.rae import RAE
from genray.objectives.tokenizer import Tokenization
from genray.preemption import Stopped
from genray.presets.vae import VAES
from genray.sampling import beside, grid, sample
from genray.storage import RunFolder
from genray.trainer import Trainer, train

VQ = Tokenizer(num_codes=32, code_dim=4, width=8, num_downsamplings=1)
FSQ = Tokenizer(quantizer="fsq", levels=(5, 5), width=8, num_downsamplings=1)
KL = Tokenizer(quantizer="none", code_dim=1, width=8, num_downsamplings=1)
TOKENIZERS = pytest.mark.parametrize("model", [VQ, FSQ, KL], ids=["vq", "fsq", "kl"])


def autoencoder_config(model: object, objective: object, num_steps: int, **train: object) -> Config:
    fields = {"checkpoint_every": 3, "log_every": 3, "sample_every": 0} | train
    return tiny_config(
        model=model,
        objective=objective,
        optim=Optim(lr=3e-3),
        train=Train(num_steps=num_steps, global_batch_size=32, ema_half_life=500, **fields),  # type: ignore[arg-type]
    )


def psnr_of(folder: RunFolder, step: int) -> float:
    settings = Eval(metrics=("psnr",))
    path = folder.local / "snapshots" / step_name(step)
    (score,) = score_snapshot(path, data=Data(name="digits"), settings=settings, extractor=None)
    return score.value


@TOKENIZERS
def test_tokenizer_of_digits_gains_3_db_by_training(model: Tokenizer, tmp_path) -> None:
    folder = run(autoencoder_config(model, Tokenization(), 100, checkpoint_every=100), tmp_path)
    early = run(autoencoder_config(model, Tokenization(), 1), tmp_path / "early")
    assert psnr_of(folder, 100) > psnr_of(early, 1) + 3


@TOKENIZERS
def test_tokenizer_resumed_from_a_checkpoint_ends_bit_identical(model: Tokenizer, tmp_path) -> None:
    whole = run(autoencoder_config(model, Tokenization(), 6), tmp_path / "whole")
    run(autoencoder_config(model, Tokenization(), 3), tmp_path / "halves")
    halves = run(autoencoder_config(model, Tokenization(), 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)


def test_tokenizer_is_refused_for_sampling(tmp_path) -> None:
    folder = run(autoencoder_config(FSQ, Tokenization(), 1), tmp_path)
    with pytest.raises(ConfigError, match="is a tokenizer, which has no distribution to draw from"):
        sample(snapshot.load(folder.local / "snapshots" / step_name(1)), 4, seed=0)


MLP = MLPVAE(latent_dim=6, hidden=48)


@pytest.mark.parametrize(
    ("model", "objective", "grids"),
    [(KL, Tokenization(), ["reconstructions"]), (MLP, ELBO(), ["fixed_z", "reconstructions"])],
    ids=["tokenizer", "vae"],
)
def test_run_shows_the_same_training_images_beside_their_reconstructions(model, objective, grids, tmp_path) -> None:
    config = autoencoder_config(model, objective, 2, checkpoint_every=1, sample_every=1)
    folder = run(config, tmp_path).local
    places = folder / "journal" / "train" / "samples"
    assert sorted(path.name for path in places.iterdir()) == grids
    images = load_images(config.data, "train").images
    shown = images[torch.linspace(0, len(images) - 1, 32).round().long()]
    for step in (1, 2):
        made = snapshot.load(folder / "snapshots" / step_name(step))
        picture = grid(beside(shown, next(reconstructions(made, shown))), 8)
        with Image.open(places / "reconstructions" / f"{step:09d}.png") as written:
            assert np.array_equal(np.asarray(written), picture)


def last_metrics(model: object, objective: object, folder, num_steps: int = 200) -> dict[str, float]:
    config = autoencoder_config(model, objective, num_steps, checkpoint_every=1000, log_every=25)
    opened = RunFolder.open(str(folder), config.run.name)
    return train(config, load_images(config.data, "train"), opened, current(False)).metrics


def test_vae_told_the_label_of_a_digit_needs_fewer_nats(tmp_path) -> None:
    free = last_metrics(MLP, ELBO(), tmp_path / "free")
    told = last_metrics(replace(MLP, conditional=True), ELBO(), tmp_path / "told")
    assert told["vae/elbo"] > free["vae/elbo"] + 0.4


@pytest.mark.parametrize("knobs", [{"num_flows": 2}, {"num_pseudo_inputs": 20}], ids=["flows", "pseudo-inputs"])
def test_bent_posterior_and_learned_prior_of_digits_raise_the_bound_and_use_the_latents(knobs, tmp_path) -> None:
    first, last = (
        last_metrics(replace(MLP, **knobs), ELBO(kl_warmup_samples=6_000), tmp_path / str(n), n) for n in (1, 400)
    )
    assert last["vae/elbo"] > first["vae/elbo"] + 12
    assert last["vae/kl"] > 2


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(bound="iwae", num_samples=3, num_groups=2),
        ELBO(bound="iwae", num_samples=6, estimator="dreg", kl_warmup_samples=6_000),
        ELBO(bound="ciwae", num_samples=6),
        ELBO(bound="piwae", num_samples=3, num_groups=2),
        ELBO(free_bits=0.2),
        ELBO(total_correlation=2.0),
        ELBO(beta=0.5, mmd=10.0),
    ],
    ids=["miwae", "dreg", "ciwae", "piwae", "free bits", "total correlation", "mmd"],
)
def test_every_bound_and_charge_raises_the_bound_of_digits_and_uses_the_latents(objective, tmp_path) -> None:
    first, last = (last_metrics(MLP, objective, tmp_path / str(n), n) for n in (1, 400))
    assert last["vae/elbo"] > first["vae/elbo"] + 12
    assert last["vae/kl"] > 1


@pytest.mark.parametrize("output", ["scale", "global-scale"])
def test_learned_scale_of_pixels_raises_the_density_of_digits(output, tmp_path) -> None:
    objective = ELBO(likelihood="gaussian")
    fixed = last_metrics(MLP, objective, tmp_path / "fixed")
    learned = last_metrics(replace(MLP, output=output), objective, tmp_path / "learned")
    assert learned["vae/elbo"] > fixed["vae/elbo"] + 10


def test_rae_of_digits_reconstructs_better_by_training(tmp_path) -> None:
    first, last = (last_metrics(MLP, RAE(decoder_l2=0.01), tmp_path / str(n), n) for n in (1, 200))
    assert last["vae/recon_loss"] < first["vae/recon_loss"] - 100


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (replace(MLP, num_pseudo_inputs=5), ELBO()),
        (replace(MLP, num_flows=2), ELBO(kl_warmup_samples=100)),
        (replace(MLP, conditional=True), ELBO(capacity=2.0, capacity_samples=100)),
        (HierarchicalVAE(width=4, latent_channels=2, blocks_per_level=1, num_halvings=1), ELBO()),
        (MLP, RAE(decoder_l2=0.1, gradient_penalty=0.1)),
        (AdversarialVAE(latent_dim=6, hidden=16), LatentAdversarial(form="adversarial", beta=0.0)),
    ],
    ids=["pseudo-inputs", "flows", "conditional", "hierarchy", "rae", "adversarial latents"],
)
def test_autoencoder_resumed_from_a_checkpoint_ends_bit_identical(model, objective, tmp_path) -> None:
    whole = run(autoencoder_config(model, objective, 6), tmp_path / "whole")
    run(autoencoder_config(model, objective, 3), tmp_path / "halves")
    halves = run(autoencoder_config(model, objective, 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)


def test_iwae_of_ever_more_samples_resumed_from_a_checkpoint_ends_bit_identical(tmp_path) -> None:
    anneal = Anneal(to=("objective.num_samples=5",), shape="geometric")
    config = replace(autoencoder_config(MLP, ELBO(bound="iwae", estimator="dreg"), 6), anneal=anneal)
    whole, folder = run(config, tmp_path / "whole"), RunFolder.open(str(tmp_path / "halves"), config.run.name)
    with pytest.raises(Stopped):  # at step 3
        train(config, load_images(config.data, "train"), folder, current(False), lambda: "stop")
    assert_same_state(whole, run(config, tmp_path / "halves"), 6)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_time_of_a_step_is_measured_with_the_values_of_the_whole_run(num_workers, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        Trainer, "update", lambda self: seen.append(annealed(self.config, self.samples_seen).objective.num_samples)
    )
    anneal = Anneal(to=("objective.num_samples=51",), shape="linear", samples=64_000)
    config = replace(autoencoder_config(MLP, ELBO(bound="iwae"), 2_000), anneal=anneal)  # 32 images a step
    seconds_per_step(replace(config, cluster=Cluster(num_workers=num_workers)), num_steps=5)
    assert seen[2:] == [6, 16, 26, 36, 46]  # after two to warm up


@pytest.mark.parametrize("made", VAES, ids=lambda made: made.__name__)
def test_memory_of_an_autoencoders_preset_is_estimated(made) -> None:
    assert memory_mb(made())["activations"] > 0


@pytest.mark.parametrize("made", VAES, ids=lambda made: made.__name__)
def test_autoencoders_preset_runs_two_steps_at_tiny_size(made, tmp_path) -> None:
    preset = made()
    tiny = {
        name: min(4, getattr(preset.model, name))
        for name in ("width", "hidden", "discriminator_width", "num_codes", "latent_dim", "latent_channels")
        if hasattr(preset.model, name)
    } | ({"num_halvings": 1, "blocks_per_level": 1} if hasattr(preset.model, "num_halvings") else {})
    config = autoencoder_config(replace(preset.model, **tiny), preset.objective, 2)
    folder = RunFolder.open(str(tmp_path), config.run.name)
    outcome = train(config, load_images(config.data, "train"), folder, current(False))
    assert outcome.step == 2
    assert outcome.metrics[f"{config.objective.product}/skipped"] == 0

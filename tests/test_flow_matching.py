"""Short runs of flows to the latents of digits: what improves, exact resume, and what becomes of the model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import evaluation_snapshots as snapshots
import pytest
import torch
from conftest import tiny_config
from test_model_latent_flow import Straight
from test_trainer import assert_same_state, run

from genray import snapshot
from genray.checkpoint import step_name
from genray.config import Config, Data, Eval, Optim, Train
from genray.data.images import ImageSet
from genray.errors import CheckpointError, ConfigError
from genray.evaluation.scoring import score_snapshot
from genray.models.latent_flow import LatentFlow
from genray.models.tokenizer import Tokenizer
from genray.objectives import Batch, Networks
from genray.objectives.flow_matching import FlowMatching
from genray.objectives.tokenizer import Tokenization
from genray.sampling import sample, to_float
from genray.streams import Draws
from genray.transfer import Transfer

KL = Tokenizer(quantizer="none", code_dim=4, width=8, num_downsamplings=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a KL autoencoder that has learned digits."""
    config = tiny_config(
        model=KL,
        objective=Tokenization(),
        optim=Optim(lr=3e-3),
        train=Train(num_steps=150, global_batch_size=32, checkpoint_every=150, sample_every=0, ema_half_life=500),
    )
    return run(config, tmp_path_factory.mktemp("tokenizer")).local / "snapshots" / step_name(150)


def flow_config(source: Path | str, num_steps: int, **train: Any) -> Config:
    model = LatentFlow(**asdict(KL), transformer_width=64, num_layers=1, num_heads=2, conditional=True)
    fields = {"checkpoint_every": 3, "log_every": 3, "sample_every": 0} | train
    return tiny_config(
        model=model,
        objective=FlowMatching(),
        optim=Optim(name="adamw", lr=1e-2, betas=(0.9, 0.95)),
        transfer=Transfer(source=str(source)),
        train=Train(num_steps=num_steps, global_batch_size=64, ema_half_life=500, **fields),
    )


@pytest.fixture(scope="module")
def made(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a flow that has learned its latents."""
    folder = run(flow_config(tokenizer, 300, checkpoint_every=300), tmp_path_factory.mktemp("flow"))
    return folder.local / "snapshots" / step_name(300)


@torch.no_grad()
def test_latents_of_the_flow_are_distributed_as_those_of_the_digits_of_the_class(made: Path, digits: ImageSet) -> None:
    generator: Any = snapshot.load(made).module
    torch.manual_seed(0)
    for label in (0, 1):
        images = to_float(digits.images[digits.labels == label])
        wanted = generator.latents(images, torch.randn(len(images), *generator.latent_shape)).flatten(1)
        noise = torch.randn(400, *generator.latent_shape)
        drawn = generator.flow(noise, torch.full((400,), label)).flatten(1)
        from_noise = (wanted.mean(dim=0) - noise.flatten(1).mean(dim=0)).norm()
        assert (wanted.mean(dim=0) - drawn.mean(dim=0)).norm() < 0.4 * from_noise


def test_images_of_the_flow_are_nearer_to_digits_than_those_of_a_fresh_one(
    made: Path, tokenizer: Path, tmp_path: Path
) -> None:
    early = run(flow_config(tokenizer, 1), tmp_path).local / "snapshots" / step_name(1)
    extractor = snapshots.save_classifier(tmp_path / "classifier")
    settings = Eval(metrics=("fid",), num_samples=300, num_seeds=1)
    before, after = (
        score_snapshot(path, data=Data(name="digits"), settings=settings, extractor=extractor)[0].value
        for path in (early, made)
    )
    assert after < 0.8 * before


def test_flow_leaves_the_tokenizer_as_it_was_and_competes_as_a_generator(made: Path, tokenizer: Path) -> None:
    before, after = snapshot.load(tokenizer), snapshot.load(made)
    kept = after.module.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.module.state_dict().items())
    assert (after.product, after.task) == ("generator", "digits-generator")


def test_flow_resumed_from_a_checkpoint_ends_bit_identical(tokenizer: Path, tmp_path: Path) -> None:
    whole = run(flow_config(tokenizer, 6), tmp_path / "whole")
    run(flow_config(tokenizer, 3), tmp_path / "halves")
    halves = run(flow_config(tokenizer, 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)


def given(num: int) -> Batch:
    draws = Draws(seed=0, step=0, num_global=num, start=0, stop=num, device=torch.device("cpu"))
    labels = torch.zeros(num, dtype=torch.int64)
    return Batch(images=torch.zeros(num, 1, 8, 8), labels=labels, step=0, samples_seen=0, draws=draws)


def test_loss_of_the_true_velocity_to_one_point_is_0() -> None:
    module: Any = LatentFlow(**asdict(KL), transformer_width=8, num_layers=1, num_heads=2).build((1, 8, 8), 10)
    module["generator"].transformer = Straight(2.0, 0.0)
    point = torch.full((50, *module["generator"].latent_shape), 2.0)
    loss, _ = FlowMatching().loss("generator", "all", Networks(module, module), given(50), point)
    assert float(loss) == pytest.approx(0, abs=1e-8)


def test_loss_of_the_true_velocity_of_normal_latents_is_what_no_velocity_knows() -> None:
    """The variance of latent minus noise given the point between: s² / ((1 - t)² + s² t²), half way for t = 1/2."""
    module: Any = LatentFlow(**asdict(KL), transformer_width=8, num_layers=1, num_heads=2).build((1, 8, 8), 10)
    module["generator"].transformer = Straight(1.0, 0.5)
    latents = 1 + 0.5 * torch.randn(4000, *module["generator"].latent_shape)
    loss, _ = FlowMatching(time_spread=1e-6).loss("generator", "all", Networks(module, module), given(4000), latents)
    assert float(loss) == pytest.approx(0.25 / (0.25 + 0.25 * 0.25), rel=0.02)


def test_flow_without_a_tokenizer_to_start_from_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^transfer\.source is empty, "):
        flow_config("", 1)


def test_tokenizer_of_codes_is_refused_with_what_does_not_fit(tmp_path: Path) -> None:
    config = tiny_config(model=Tokenizer(width=8, num_downsamplings=2), objective=Tokenization())
    source = run(config, tmp_path / "codes").local / "snapshots" / step_name(8)
    with pytest.raises(CheckpointError, match="is of another architecture"):
        run(flow_config(source, 1), tmp_path / "flow")


def test_time_spread_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^objective\.time_spread=0\.0 must be above 0"):
        FlowMatching(time_spread=0.0)


@pytest.mark.mlflow
def test_flow_with_its_decoder_is_served_as_it_samples(made: Path, tmp_path: Path) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="needs genray[mlflow]")
    from genray.mlflow_model import package

    package(made, tmp_path / "model")
    served = pyfunc.load_model(str(tmp_path / "model")).predict([{"n": 6, "seed": 3, "label": 7}])
    expected = sample(snapshot.load(made), 6, seed=3, label=7).permute(0, 2, 3, 1)
    assert abs(served.astype(int) - expected.numpy().astype(int)).max() <= 1

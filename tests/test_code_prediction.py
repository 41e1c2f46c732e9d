"""Short runs of transformers over the codes of digits: what improves, exact resume, and what becomes of the model."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import evaluation_snapshots as snapshots
import pytest
import torch
from conftest import tiny_config
from test_trainer import assert_same_state, run

from genray import snapshot
from genray.checkpoint import step_name
from genray.config import Config, Data, Eval, Optim, Train
from genray.data.images import ImageSet
from genray.errors import ConfigError
from genray.estimate import memory_mb
from genray.evaluation.scoring import score_snapshot
from genray.models.code_transformer import CodeTransformer
from genray.models.tokenizer import Tokenizer
from genray.objectives import Batch, Networks
from genray.objectives.code_prediction import CodePrediction
from genray.objectives.tokenizer import Tokenization
from genray.sampling import sample, to_float
from genray.streams import Draws
from genray.transfer import Transfer

FSQ = Tokenizer(quantizer="fsq", levels=(5, 5), width=8, num_downsamplings=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a tokenizer that has learned digits."""
    config = tiny_config(
        model=FSQ,
        objective=Tokenization(),
        optim=Optim(lr=3e-3),
        train=Train(num_steps=80, global_batch_size=32, checkpoint_every=80, sample_every=0, ema_half_life=500),
    )
    return run(config, tmp_path_factory.mktemp("tokenizer")).local / "snapshots" / step_name(80)


def transformer_config(source: Path | str, num_steps: int, *, corruption: float = 0.1, **train: Any) -> Config:
    model = CodeTransformer(**asdict(FSQ), transformer_width=32, num_layers=2, num_heads=2, conditional=True)
    fields = {"checkpoint_every": 3, "log_every": 3, "sample_every": 0} | train
    return tiny_config(
        model=model,
        objective=CodePrediction(corruption=corruption),
        optim=Optim(name="adamw", lr=5e-3),
        transfer=Transfer(source=str(source)),
        train=Train(num_steps=num_steps, global_batch_size=32, ema_half_life=500, **fields),
    )


@pytest.fixture(scope="module")
def made(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a transformer that has learned their codes."""
    folder = run(transformer_config(tokenizer, 200, checkpoint_every=200), tmp_path_factory.mktemp("transformer"))
    return folder.local / "snapshots" / step_name(200)


@torch.no_grad()
def test_transformer_knows_more_of_the_codes_of_digits_than_how_often_each_stands_where(
    made: Path, digits: ImageSet
) -> None:
    generator: Any = snapshot.load(made).module
    codes = generator.codes(to_float(digits.images))
    shares = torch.nn.functional.one_hot(codes, 25).double().mean(dim=0)
    alone = float(torch.special.entr(shares).sum())
    logits = generator(codes, digits.labels)
    nats = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())) * codes.shape[1]
    assert nats < alone - 5 < 16 * math.log(25) - 5


def test_images_of_the_transformer_are_nearer_to_digits_than_those_of_a_fresh_one(
    made: Path, tokenizer: Path, digits: ImageSet, tmp_path: Path
) -> None:
    early = run(transformer_config(tokenizer, 1), tmp_path).local / "snapshots" / step_name(1)
    extractor = snapshots.save_classifier(tmp_path / "classifier")
    settings = Eval(metrics=("fid",), num_samples=300, num_seeds=1)
    before, after = (
        score_snapshot(path, data=Data(name="digits"), settings=settings, extractor=extractor)[0].value
        for path in (early, made)
    )
    assert after < 0.6 * before


def test_transformer_leaves_the_tokenizer_as_it_was_and_competes_as_a_generator(made: Path, tokenizer: Path) -> None:
    before, after = snapshot.load(tokenizer), snapshot.load(made)
    kept = after.module.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.module.state_dict().items())
    assert (after.product, after.task) == ("generator", "digits-generator")


def test_transformer_resumed_from_a_checkpoint_ends_bit_identical(tokenizer: Path, tmp_path: Path) -> None:
    whole = run(transformer_config(tokenizer, 6), tmp_path / "whole")
    run(transformer_config(tokenizer, 3), tmp_path / "halves")
    halves = run(transformer_config(tokenizer, 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)


def test_truncation_to_0_gives_one_image_a_class(made: Path) -> None:
    images = sample(snapshot.load(made), 20, seed=0, truncation=0.0)
    assert torch.equal(images[:10], images[10:])
    assert len(images[:10].flatten(1).unique(dim=0)) > 5


def test_corruption_replaces_that_share_of_the_codes_that_the_transformer_sees() -> None:
    torch.manual_seed(0)
    module: Any = CodeTransformer(**asdict(FSQ), transformer_width=8, num_layers=1, num_heads=2).build((1, 8, 8), 10)
    given: list[torch.Tensor] = []
    module["generator"].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    draws = Draws(seed=0, step=0, num_global=400, start=0, stop=400, device=torch.device("cpu"))
    images, labels = torch.rand(400, 1, 8, 8) * 2 - 1, torch.zeros(400, dtype=torch.int64)
    batch = Batch(images=images, labels=labels, step=0, samples_seen=0, draws=draws)
    objective, networks = CodePrediction(corruption=0.5), Networks(module, module)
    codes = objective.prepare(networks, batch)
    objective.loss("generator", "all", networks, batch, codes)
    assert float((given[0] != codes).float().mean()) == pytest.approx(0.5 * 24 / 25, abs=0.02)


def test_transformer_without_a_tokenizer_to_start_from_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^transfer\.source is empty, .* e\.g\. digits-tokenizer@champion$"):
        transformer_config("", 1)


def test_share_of_corrupted_codes_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^objective\.corruption=1\.0 must lie in \[0, 1\)"):
        CodePrediction(corruption=1.0)


def test_memory_of_a_transformer_is_estimated(tokenizer: Path) -> None:
    config = transformer_config(tokenizer, 1)
    wider = replace(config, model=replace(config.model, transformer_width=64))  # type: ignore[type-var]
    assert memory_mb(wider)["activations"] > memory_mb(config)["activations"] > 0


@pytest.mark.mlflow
def test_transformer_with_its_decoder_is_served_as_it_samples(made: Path, tmp_path: Path) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="needs genray[mlflow]")
    from genray.mlflow_model import package

    package(made, tmp_path / "model")
    served = pyfunc.load_model(str(tmp_path / "model")).predict([{"n": 6, "seed": 3, "label": 7}])
    expected = sample(snapshot.load(made), 6, seed=3, label=7).permute(0, 2, 3, 1)
    assert abs(served.astype(int) - expected.numpy().astype(int)).max() <= 1

"""Short runs of autoencoders on the digits: what improves, and exact resume of what changes while training."""

import pytest
from conftest import tiny_config
from test_trainer import assert_same_state, run

from genray import snapshot
from genray.checkpoint import step_name
from genray.config import Config, Data, Eval, Optim, Train
from genray.errors import ConfigError
from genray.evaluation.scoring import score_snapshot
from genray.models.tokenizer import Tokenizer
from genray.objectives.tokenizer import Tokenization
from genray.sampling import sample
from genray.storage import RunFolder

VQ = Tokenizer(num_codes=32, code_dim=4, width=8, num_downsamplings=1)
FSQ = Tokenizer(quantizer="fsq", levels=(5, 5), width=8, num_downsamplings=1)


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


@pytest.mark.parametrize("model", [VQ, FSQ], ids=["vq", "fsq"])
def test_tokenizer_of_digits_gains_4_db_by_training(model: Tokenizer, tmp_path) -> None:
    folder = run(autoencoder_config(model, Tokenization(), 200, checkpoint_every=100, keep=9), tmp_path)
    early = run(autoencoder_config(model, Tokenization(), 1), tmp_path / "early")
    assert psnr_of(folder, 200) > psnr_of(early, 1) + 4


@pytest.mark.parametrize("model", [VQ, FSQ], ids=["vq", "fsq"])
def test_tokenizer_resumed_from_a_checkpoint_ends_bit_identical(model: Tokenizer, tmp_path) -> None:
    whole = run(autoencoder_config(model, Tokenization(), 6), tmp_path / "whole")
    run(autoencoder_config(model, Tokenization(), 3), tmp_path / "halves")
    halves = run(autoencoder_config(model, Tokenization(), 6), tmp_path / "halves")
    assert_same_state(whole, halves, 6)


def test_tokenizer_is_refused_for_sampling(tmp_path) -> None:
    folder = run(autoencoder_config(FSQ, Tokenization(), 1), tmp_path)
    with pytest.raises(ConfigError, match="is a tokenizer, which has no distribution to draw codes from"):
        sample(snapshot.load(folder.local / "snapshots" / step_name(1)), 4, seed=0)


def test_tokenizer_with_a_sample_grid_is_refused_at_config_time() -> None:
    with pytest.raises(ConfigError, match=r"^train\.sample_every=4: a tokenizer draws no samples; set it to 0$"):
        autoencoder_config(FSQ, Tokenization(), 1, sample_every=4)

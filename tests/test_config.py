"""Configs refuse early, and survive JSON."""

import json
import math
from dataclasses import replace

import pytest
from conftest import tiny_config

from genray.config import Cluster, Config, Data, Optim, Run, Tracking, Train, differences
from genray.errors import ConfigError
from genray.models.dcgan import DCGAN
from genray.models.stylegan2 import StyleGAN2
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.objectives.gan import GAN
from genray.presets import PRESETS, expectation, preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_read_back_from_json_is_equal(name):
    config = preset(name)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_hardware_time_and_score(name):
    expect = expectation(name)
    assert expect.summary and expect.hardware and expect.time and expect.score


def refused(make) -> str:
    with pytest.raises(ConfigError) as caught:
        make()
    return str(caught.value)


def test_unknown_preset_names_the_nearest():
    assert refused(lambda: preset("mnist-dcgn")) == (
        f"unknown preset 'mnist-dcgn'; choose from {', '.join(sorted(PRESETS))} (did you mean 'mnist-dcgan'?)"
    )


def test_batch_that_the_workers_do_not_divide_is_refused():
    train = Train(num_steps=8, global_batch_size=250)
    assert refused(lambda: tiny_config(train=train, cluster=Cluster(num_workers=4))) == (
        "train.global_batch_size=250 does not divide by 4 workers; use 248 or 252"
    )


def test_number_that_is_not_finite_is_refused_in_any_section():
    assert refused(lambda: tiny_config(model=MLPVAE(), objective=ELBO(beta=math.inf))) == (
        "objective.beta=inf must be finite, and so must all numbers of a config"
    )
    assert refused(lambda: tiny_config(optim=Optim(lr=math.inf))).startswith("optim.lr=inf must be finite")


def test_batch_that_is_no_whole_groups_of_a_stylegan_is_refused():
    def made(workers):
        train, cluster = Train(num_steps=8, global_batch_size=24), Cluster(num_workers=workers)
        return tiny_config(model=StyleGAN2(width=8), data=Data(name="digits"), train=train, cluster=cluster)

    assert made(2).train.global_batch_size == 24
    assert refused(lambda: made(4)) == (
        "train.global_batch_size=24 gives a worker 6 images, no whole groups of model.deviation_group=4, of which the "
        "discriminator sees how much they vary; use a multiple of 16, or --model.deviation-group 1"
    )


def test_discrepancy_of_one_image_is_refused():
    train = Train(num_steps=8, global_batch_size=1)
    assert refused(lambda: tiny_config(model=MLPVAE(), objective=ELBO(mmd=2.0), train=train)) == (
        "train.global_batch_size=1 with objective.mmd=2.0: a discrepancy is of pairs of latents, "
        "expected at least 2 images"
    )


def test_batch_that_fewer_workers_would_not_divide_is_refused():
    train, cluster = Train(num_steps=8, global_batch_size=64), Cluster(num_workers=4, min_workers=2)
    assert refused(lambda: tiny_config(train=train, cluster=cluster)) == (
        "train.global_batch_size=64 does not divide by 3 workers, and cluster.min_workers=2 allows for them; use a "
        "multiple of 12, or raise cluster.min_workers"
    )


@pytest.mark.parametrize(("most", "fewest"), [(2, 3), (2, 0), (0, 1)])
def test_least_number_of_workers_lies_between_one_and_the_most(most, fewest):
    message = refused(lambda: Cluster(num_workers=most, min_workers=fewest))
    assert message == f"cluster.min_workers={fewest} must lie between 1 and cluster.num_workers={most}"


def test_image_size_that_the_model_cannot_make_is_refused():
    assert refused(lambda: tiny_config(data=Data(name="mnist", image_size=(30, 30)))) == (
        "model dcgan cannot make images of 30 x 30 pixels: the smaller side must be 4 to 7 times a power of two from "
        "2 on, and the other a multiple of that power; set data.image_size, e.g. to 28 28"
    )


def test_gradient_penalty_over_batch_norm_is_refused():
    message = refused(lambda: tiny_config(model=DCGAN(), objective=GAN(gamma=1.0)))
    assert message.startswith("objective.gamma=1.0 penalises a gradient per sample")


def test_folder_without_an_image_size_is_refused():
    assert refused(lambda: Data(name="folder")) == (
        "data.image_size is not set, and 'folder' has no size of its own; say e.g. 64 64"
    )


def test_learning_rate_of_zero_is_refused():
    assert refused(lambda: Optim(lr=0.0)) == "optim.lr=0.0 must be above 0, e.g. 2e-4"
    assert refused(lambda: Optim(discriminator_lr=0.0)) == "optim.discriminator_lr=0.0 must be above 0, e.g. 2e-4"


def test_unknown_field_in_a_saved_config_names_the_nearest():
    values = tiny_config().to_dict()
    values["train"]["num_step"] = values["train"].pop("num_steps")
    assert "did you mean 'train.num_steps'?" in refused(lambda: Config.from_dict(values))


def test_wrong_type_in_a_saved_config_is_refused():
    values = tiny_config().to_dict()
    values["train"]["num_steps"] = "many"
    assert refused(lambda: Config.from_dict(values)) == "train.num_steps='many' is not of type int"


def test_differences_name_the_fields_that_change_the_numbers_and_no_others():
    saved = tiny_config()
    wanted = replace(
        saved,
        train=replace(saved.train, seed=7, keep=9),
        data=replace(saved.data, root="/elsewhere"),
        cluster=Cluster(num_workers=2),
    )
    assert differences(saved, wanted) == ["train.seed: 0 -> 7"]


def test_longer_run_is_no_difference_without_a_schedule():
    saved = tiny_config()
    longer = replace(saved, train=replace(saved.train, num_steps=99))
    scheduled = replace(longer, optim=replace(saved.optim, schedule="linear"))
    assert differences(saved, longer) == []
    assert "train.num_steps: 8 -> 99" in differences(replace(saved, optim=scheduled.optim), scheduled)


@pytest.mark.parametrize("section", [lambda at: Tracking(uri=f"https://{at}/"), lambda at: Run(storage=f"s3://{at}/b")])
def test_password_in_an_address_is_refused_and_not_repeated(section):
    section("host:5000")
    with pytest.raises(ConfigError, match="holds a password") as refused:
        section("me:hunter2@host:5000")
    assert "hunter2" not in str(refused.value)

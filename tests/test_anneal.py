"""Values that move while a run goes: their paths, and the fields that may."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from genray import checkpoint
from genray.anneal import Anneal, annealed
from genray.config import Config, differences
from genray.distributed import World
from genray.ema import EMA
from genray.errors import ConfigError
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.presets import preset
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

TO = ("optim.lr=0.0005", "optim.betas.1=0.5", "objective.gamma=3", "train.ema_half_life=0")


def with_anneal(*to: str, **fields: object) -> Config:
    return tiny_config(anneal=Anneal(to=to, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "at_a_quarter"), [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2)])
def test_annealed_values_lie_where_the_shape_puts_them(shape, at_a_quarter):
    config = with_anneal(*TO, samples=100, shape=shape)
    now = annealed(config, 25)
    assert now.optim.lr == pytest.approx(1e-3 - 5e-4 * at_a_quarter)
    assert now.optim.betas == pytest.approx((0.5, 0.99 - 0.49 * at_a_quarter))
    assert now.objective.gamma == pytest.approx(1 + 2 * at_a_quarter)
    assert now.train.ema_half_life == pytest.approx(10_000 * (1 - at_a_quarter))


def test_annealed_values_stay_at_their_ends():
    config = with_anneal("objective.gamma=3", samples=100)
    assert [annealed(config, seen).objective.gamma for seen in (0, 100, 128)] == [1.0, 3.0, 3.0]


def test_annealed_values_without_a_length_arrive_with_the_run():
    config = with_anneal("objective.gamma=3", shape="linear")  # 8 steps of 16
    assert [annealed(config, seen).objective.gamma for seen in (0, 64, 128)] == [1.0, 2.0, 3.0]


def test_run_steps_with_the_values_of_its_moment(tmp_path, digits):
    config = with_anneal(*TO, samples=32, shape="linear")
    folder, world = RunFolder.open(str(tmp_path), "tiny"), World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, digits, folder, store=checkpoint.NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    trainer.update()
    groups = [state.optimizer.param_groups[0] for state in trainer.phases]
    assert [x for group in groups for x in (group["lr"], group["betas"][1])] == pytest.approx([7.5e-4, 0.745] * 2)
    assert trainer.ema.half_life == pytest.approx(5000)


def refused(*to: str, **sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        tiny_config(anneal=Anneal(to=to), **sections)
    return str(caught.value)


def test_anneal_refuses_fields_that_do_not_move():
    assert refused("optim.eps=1").startswith("anneal.to: unknown moving field 'optim.eps'; choose from objective.")


def test_anneal_refuses_an_end_that_the_field_would_not_take():
    assert refused("optim.betas.1=1") == (
        "anneal.to optim.betas.1=1.0: optim.betas=(0.5, 1.0) must both lie in [0, 1), e.g. 0.5 0.999"
    )


def test_anneal_refuses_an_end_that_the_model_would_not_take():
    base = tiny_config()
    message = refused(
        "objective.gamma=1",
        model=replace(base.model, discriminator_norm="batch"),
        objective=replace(base.objective, gamma=0.0),
    )
    assert message.startswith("anneal.to objective.gamma=1.0: objective.gamma=1.0 penalises a gradient per sample")


@pytest.mark.parametrize("name", ["lecam", "gradient_penalty"])
def test_anneal_refuses_a_start_at_which_the_run_has_no_place_for_what_is_weighed(name):
    assert refused(f"objective.{name}=2") == (
        f"anneal.to objective.{name}=2.0: objective.{name}=0.0 leaves out what it weighs, which a run has from its "
        f"first step or never; begin above 0, e.g. --objective.{name.replace('_', '-')} 1e-6"
    )


@pytest.mark.parametrize("name", ["lecam", "gradient_penalty", "consistency"])
def test_run_whose_weight_goes_to_zero_trains_to_its_end(name, tmp_path, digits):
    base = tiny_config()
    anneal = Anneal(to=(f"objective.{name}=0",), samples=32, shape="linear")
    config = replace(base, objective=replace(base.objective, **{name: 1.0}), anneal=anneal)
    folder, world = RunFolder.open(str(tmp_path), "tiny"), World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, digits, folder, store=checkpoint.NullStore(), tracker=NullTracker(), world=world)
    while not trainer.finished:
        trainer.update()
    assert trainer.step == 8 and all(state.skipped == 0 for state in trainer.phases)


def test_schedule_of_r3gan_reaches_its_half_life_of_the_ema():
    config = preset("cifar10-r3gan")
    now = annealed(config, 20_000_000)
    average = EMA(torch.nn.Linear(1, 1), now.train.ema_half_life, config.train.ema_ramp)
    assert average.decay(512, samples_seen=20_000_000) == pytest.approx(0.5 ** (512 / 5e6))


def test_anneal_refuses_a_field_without_a_start():
    assert refused("optim.discriminator_lr=1e-4") == (
        "anneal.to names optim.discriminator_lr, which has no value to start from; set --optim.discriminator_lr"
    )


@pytest.mark.parametrize("text", ["optim.lr", "optim.lr=fast", "optim.lr=nan"])
def test_anneal_refuses_what_is_no_end(text):
    assert refused(text) == f"anneal.to: {text!r} is not FIELD=NUMBER, e.g. optim.lr=5e-5"


def test_anneal_refuses_two_ends_of_one_field():
    assert refused("optim.lr=1", "optim.lr=2") == "anneal.to names optim.lr twice; give each field one end"


@pytest.mark.parametrize(("samples", "may"), [(0, False), (64, True)])
def test_run_may_be_made_longer_only_where_its_values_do_not_move_with_its_length(samples, may):
    config = with_anneal("optim.lr=0.0005", samples=samples)
    longer = replace(config, train=replace(config.train, num_steps=16))
    assert (differences(config, longer) == []) is may


def test_geometric_anneal_goes_by_the_same_factor_for_every_image():
    config = with_anneal("objective.gamma=16", samples=100, shape="geometric")  # from 1
    seen = [annealed(config, samples).objective.gamma for samples in (0, 25, 50, 75, 100, 200)]
    assert seen == pytest.approx([1, 2, 4, 8, 16, 16])


def test_geometric_anneal_refuses_a_way_from_zero():
    base = tiny_config()
    with pytest.raises(ConfigError) as caught:
        tiny_config(
            objective=replace(base.objective, gamma=0.0), anneal=Anneal(to=("objective.gamma=1",), shape="geometric")
        )
    assert str(caught.value).startswith(
        "anneal.shape='geometric' goes by a factor, and objective.gamma goes from 0.0 to 1.0; both must be above 0"
    )


def test_number_of_importance_samples_moves_in_whole_numbers():
    objective = ELBO(bound="iwae")
    config = tiny_config(
        model=MLPVAE(), objective=objective, anneal=Anneal(to=("objective.num_samples=50",), samples=100)
    )
    seen = [annealed(config, samples).objective.num_samples for samples in range(101)]
    assert seen[0] == 1 and seen[100] == 50 and sorted(seen) == seen
    assert {type(number) for number in seen} == {int}
    assert len(set(seen)) > 40

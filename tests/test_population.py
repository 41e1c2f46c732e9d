"""Who takes over whom, with which values, and that it is decided once."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from made_studies import journal, report, settings_of, started

from genray.checkpoint import latest
from genray.data.images import ImageSet
from genray.distributed import current
from genray.errors import ConfigError
from genray.population import boundaries, next_generation, perturb, perturbed, takeovers
from genray.ray_population import bandit, improvements
from genray.space import Domain, Values
from genray.study import Settings, Study
from genray.trainer import train


@pytest.mark.parametrize(
    ("objective", "members", "donors"),
    [
        ({0: 3.0, 1: 1.0, 2: 4.0, 3: 2.0}, {2}, {1}),
        ({n: float(n) for n in range(8)}, {6, 7}, {0, 1}),
        ({0: 2.0, 1: 1.0}, {0}, {1}),
        ({0: 1.0}, set(), set()),
        ({0: 1.0, 1: 1.0, 2: 1.0}, set(), set()),
    ],
)
def test_the_worst_quarter_takes_over_the_best(objective: dict[int, float], members: set[int], donors: set[int]):
    found = takeovers(objective, random.Random(0))
    assert set(found) == members
    assert set(found.values()) <= donors


def test_perturbed_values_stay_in_their_domains_and_conditions_hold():
    space = {
        "optim.lr": Domain("log", (1e-4, 1e-3)),
        "objective.penalty": Domain("choice", ("r1", "none")),
        "objective.gamma": Domain("uniform", (0.1, 10.0), when=("objective.penalty", "r1")),
        "model.width": Domain("int", (8, 10)),
    }
    values: Values = {"optim.lr": 1e-3, "objective.penalty": "none", "model.width": 10}
    seen = set()
    for seed in range(200):
        found = perturb(space, values, random.Random(seed))
        assert all(space[name].has(value) for name, value in found.items())
        assert ("objective.gamma" in found) == (found["objective.penalty"] == "r1")
        assert isinstance(found["model.width"], int)
        seen.add(found["objective.penalty"])
    assert seen == {"r1", "none"}


@pytest.mark.parametrize(("grace", "wanted"), [(0, [10, 20, 30, 40, 45]), (25, [30, 45]), (100, [45])])
def test_members_stand_still_at_whole_reports_and_at_the_end(tmp_path: Path, grace: int, wanted: list[int]):
    made = settings_of(tmp_path, report_every=10, grace_steps=grace)
    config = replace(made.config, train=replace(made.config.train, num_steps=45))
    assert boundaries(config, made.search) == wanted


def population(storage: Path, digits: ImageSet) -> Study:
    """Four members that stand at step 2 with their checkpoints; member 1 is best, member 2 worst."""
    made = settings_of(storage, num_trials=4, scheduler="pbt", report_every=2)
    made = replace(made, config=tiny_config(run=made.config.run), space={"optim.lr": Domain("log", (1e-5, 1e-1))})
    study = Study.claim(made)
    for number, objective in enumerate([3.0, 1.0, 4.0, 2.0]):
        values = {"optim.lr": 10.0 ** -(number + 2)}
        own = study.settings.trial_config(number, values, "race")
        stopped = replace(own, train=replace(own.train, num_steps=2))
        train(stopped, digits, study.trial_folder(number), current(False))
        study.note(number, "started", phase="race", values=values)
        study.note(number, "report/2", objective=[objective], metrics={})
    return study


def test_a_driver_that_dies_between_two_takeovers_decides_nothing_again(tmp_path: Path, digits: ImageSet):
    study = population(tmp_path, digits)

    def killed(*_: object) -> Values:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next_generation(study, killed)
    assert not any(trial.lineage for trial in study.trials().values())
    tasks = next_generation(study, perturbed)
    assert next_generation(study, killed) == tasks
    assert [task["until"] for task in tasks] == [4] * 4
    taken = study.trials()[2]
    assert taken.lineage == [(2, 1)]
    assert taken.values == tasks[2]["values"] != study.trials()[1].values
    member, donor = latest(study.trial_folder(2)), latest(study.trial_folder(1))
    assert member is not None and donor is not None
    assert all(torch.equal(member.tensors[name], donor.tensors[name]) for name in donor.tensors)
    other = latest(study.trial_folder(0))
    assert other is not None and not all(
        torch.equal(other.tensors[name], donor.tensors[name]) for name in donor.tensors
    )


def test_a_driver_that_dies_within_a_generation_takes_nothing_from_a_member_twice(tmp_path: Path, digits: ImageSet):
    study = population(tmp_path, digits)
    task = next_generation(study, perturbed)[2]
    own = study.settings.trial_config(2, task["values"], "race")
    train(own, digits, study.trial_folder(2), current(False))
    study.note(2, "report/4", objective=[0.5], metrics={})
    assert next_generation(study, perturbed)[2] == task
    member = latest(study.trial_folder(2))
    assert member is not None and member.step == own.train.num_steps


def test_members_that_ended_are_out_of_it(tmp_path: Path, digits: ImageSet):
    study = population(tmp_path, digits)
    study.note(1, "stopped", reason="collapsed")
    assert [task["number"] for task in next_generation(study, perturbed)] == [0, 2, 3]
    assert study.trials()[2].lineage == [(2, 3)]
    for number in (0, 2, 3):
        study.note(number, "finished", reason="")
    assert next_generation(study, perturbed) == []


def raced(storage: Path) -> Study:
    """Three members whose reward grows by ten times their learning rate a step; 0 took over 2 at step 20."""
    made = settings_of(storage, num_trials=3, scheduler="pbt", report_every=10)
    study = Study.claim(replace(made, space={"optim.lr": Domain("uniform", (0.0, 1.0))}))
    rates, reward = {0: 0.1, 1: 0.5, 2: 0.9}, dict.fromkeys(range(3), -1000.0)
    for number, rate in rates.items():
        journal(study, started(0, number, {"optim.lr": rate}))
    for step in (10, 20, 30):
        for number, rate in rates.items():
            reward[number] += 100 * rate
            journal(study, report(step, number, step, -reward[number]))
        if step == 20:
            rates[0], reward[0] = 0.7, reward[2]
            journal(study, (step, 0, "exploit/20", {"donor": 2, "values": {"optim.lr": 0.7}}))
    return study


def test_a_gain_counts_from_where_the_donor_stood(tmp_path: Path):
    study = raced(tmp_path)
    trials = study.trials()
    found = improvements(trials[0], trials, study.settings.space)
    assert [row for row, _ in found] == [[20.0, -990.0, 0.1], [30.0, -820.0, 0.7]]
    assert [gain for _, gain in found] == pytest.approx([1.0, 7.0])


def test_the_bandit_goes_where_gains_were_large(tmp_path: Path):
    study = raced(tmp_path)
    found = [bandit(study, study.trials(), 2, 30, random.Random(seed))["optim.lr"] for seed in range(5)]
    assert all(0.6 < rate <= 1 for rate in found)


def test_pb2_refuses_what_has_no_order(tmp_path: Path):
    made = settings_of(tmp_path, scheduler="fifo")
    space = {"model.width": Domain("choice", (8, 16))}
    with pytest.raises(ConfigError, match=r"^search.scheduler='pb2' explores ranges .* model.width is 'choice 8 16'"):
        Settings(made.config, replace(made.search, scheduler="pb2"), space)

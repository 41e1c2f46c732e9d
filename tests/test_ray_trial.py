"""One trial in a process that serves many: what it forgets, takes over, and makes of its own deaths."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from test_ray_tune import settings, trial

from genray.checkpoint import CHECKPOINTS, latest, step_name
from genray.population import adopt
from genray.ray_trial import Trial
from genray.study import Study
from genray.trainer import Trainer


def state(of: Trial) -> dict[str, torch.Tensor]:
    """Weights, averages and moments."""
    made = of._trainer.checkpoint()
    return {name: t for name, t in made.tensors.items() if name.startswith(("modules/", "ema/", "optim/"))}


def test_a_member_goes_on_from_the_weights_of_its_donor_to_the_bit(tmp_path: Path) -> None:
    study = Study.claim(settings(tmp_path))
    donor, member = trial(study, 0, {"optim.lr": 1e-2}), trial(study, 1, {"optim.lr": 1e-4})
    donor.step()
    donor.step()
    member.step()
    values = {"optim.lr": 3e-3}
    adopt(
        study.trial_folder(0).pull(f"{CHECKPOINTS}/{step_name(40)}"),
        study.trial_folder(1),
        study.settings.trial_config(1, values, "race"),
    )
    member.reset_config({**member.config, "trial": {"number": 1, "phase": "race", "values": values, "until": 60}})
    member._assemble()
    wanted, found = state(donor), state(member)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert member._trainer.step == 40
    said = member.step()
    assert (said["step"], said["done"]) == (60, True)
    assert member._trainer.phases[0].optimizer.param_groups[0]["lr"] == 3e-3
    assert latest(study.trial_folder(1)).state["config"]["optim"]["lr"] == 3e-3  # type: ignore[union-attr]


def test_a_trial_in_a_used_process_reports_what_it_would_in_a_fresh_one(tmp_path: Path) -> None:
    alone = trial(Study.claim(settings(tmp_path / "alone")), 0, {"optim.lr": 1e-3})
    wanted = [alone.step()["objective"] for _ in range(3)]
    shared = Study.claim(settings(tmp_path / "shared"))
    used = trial(shared, 1, {"optim.lr": 9e-3})
    used.step()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    used.reset_config({**used.config, "trial": {"number": 0, "phase": "race", "values": {"optim.lr": 1e-3}}})
    assert [used.step()["objective"] for _ in range(3)] == wanted
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (torch.float32, 1)


def test_a_trial_whose_values_do_not_go_together_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    said = trial(Study.claim(settings(tmp_path)), 0, {"model.latent_dim": 0}).step()
    assert said["done"] and said["failed"] == "model.latent_dim=0 must be at least 1"


class DiedError(BaseException):
    """Stands for the end of a process."""


def dies_after(checkpoints: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a process ends in the stretch after so many checkpoints of its own."""
    whole, done = Trainer.advance, [0]

    def advance(trainer: Trainer) -> None:
        if done[0] == checkpoints:
            done[0] = 0
            raise DiedError
        whole(trainer)
        trainer.store.wait()
        done[0] += 1

    monkeypatch.setattr(Trainer, "advance", advance)


def test_a_trial_that_never_gets_further_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.claim(settings(tmp_path, max_failures=2))
    dies_after(0, monkeypatch)
    for _ in range(3):
        with pytest.raises(DiedError):
            trial(study, 0, {"optim.lr": 1e-3}).step()
    said = trial(study, 0, {"optim.lr": 1e-3}).step()
    assert said["failed"] == "its process died 3 times after its beginning, and never got any further"


def test_a_trial_whose_processes_die_on_the_way_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.claim(settings(tmp_path, num_steps=120, max_failures=0))
    dies_after(1, monkeypatch)
    steps = []
    for _ in range(6):
        found = trial(study, 0, {"optim.lr": 1e-3})
        with contextlib.suppress(DiedError):
            steps += [found.step()["step"] for _ in range(3)]
    assert found.step()["step"] == 120


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_started() -> Iterator[None]:
    """A trial of one worker needs no Ray of its own: nothing here may start one."""
    yield
    assert not ray.is_initialized()

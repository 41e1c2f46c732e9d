"""The record of a study: what it remembers, what it refuses, and what it concludes."""

import json
import math
from dataclasses import replace

import pytest
from made_studies import BEGIN, HOUR, journal, keep_config, report, settings_of, started
from made_studies import population as made_population

from genray.config import Cluster
from genray.errors import ConfigError, ResumeError, StorageError
from genray.search import Search
from genray.study import (
    Confirmed,
    Settings,
    Study,
    TrialRecord,
    confirmed,
    hours,
    luck,
    ranking,
)

LR = {"optim.lr": 1e-3}


@pytest.fixture
def study(tmp_path) -> Study:
    return Study.claim(settings_of(tmp_path, num_trials=8))


def refused(error, call, *args) -> str:
    with pytest.raises(error) as found:
        call(*args)
    return str(found.value)


def test_settings_survive_their_record(tmp_path):
    settings = settings_of(tmp_path, space=("optim.betas=choice [0.0,0.9] [0.5,0.999]", "optim.betas.0=fixed"))
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_trials_of_changing_size_are_refused(tmp_path):
    settings = settings_of(tmp_path)
    shrinking = replace(settings.config, cluster=Cluster(num_workers=2, min_workers=1))
    assert refused(ConfigError, lambda: replace(settings, config=shrinking)) == (
        "cluster.min_workers=1 is for a run of its own: a trial has all of its workers or none; leave it out"
    )


def test_study_that_was_claimed_goes_on(study, tmp_path):
    study.note(0, "started", values=LR, phase="race")
    again = Study.claim(settings_of(tmp_path, num_trials=8))
    assert again.trials() == study.trials()
    assert Study.open(str(tmp_path), "made").settings == study.settings


def test_name_that_exists_with_another_space_is_refused(study, tmp_path):
    other = settings_of(tmp_path, num_trials=8, space=("optim.lr=log 1e-3 1e-2", "objective.gamma=fixed"))
    assert refused(ResumeError, Study.claim, other) == (
        "search.name='made' exists with other settings: "
        "space objective.gamma: 'log 0.01 10.0 if model.discriminator_norm=\"none\"' -> None; "
        "space optim.lr: 'log 0.0001 0.005' -> 'log 0.001 0.01'; "
        "use those values to resume it, or another search.name"
    )


def test_name_that_exists_with_another_preset_or_seed_is_refused(study, tmp_path):
    message = refused(ResumeError, Study.claim, settings_of(tmp_path, num_trials=8, seed=1))
    assert message.startswith("search.name='made' exists with other settings: search.seed: 0 -> 1; ")
    longer = settings_of(tmp_path, num_trials=8)
    longer = replace(longer, config=replace(longer.config, train=replace(longer.config.train, num_steps=3000)))
    assert "train.num_steps: 1500 -> 3000" in refused(ResumeError, Study.claim, longer)


def test_study_may_go_on_elsewhere_and_faster(study, tmp_path):
    settings = settings_of(tmp_path, num_trials=8, max_concurrent=3, max_failures=9, confirm_top=0)
    cluster = replace(settings.config.cluster, num_workers=2)
    settings = replace(settings, config=replace(settings.config, cluster=cluster))
    assert Study.claim(settings).settings.search.max_concurrent == 3


def test_folder_that_is_no_study_is_refused(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    assert refused(ResumeError, Study.claim, settings_of(tmp_path)) == (
        f"{tmp_path / 'made'} exists and is no study; choose another search.name than 'made'"
    )


def test_unknown_study_is_refused_and_leaves_no_folder(tmp_path):
    storage = str(tmp_path / "none")
    assert refused(StorageError, Study.open, storage, "mad") == (
        f"there is no study 'mad' in {storage!r}; give --storage as run.storage of its search"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "why"), [("{", "Expecting property name"), ('{"format": 9}', "format 9, this genray reads 1"), ("[]", "")]
)
def test_damaged_settings_are_named(study, tmp_path, text, why):
    path = tmp_path / "made" / "study.json"
    path.write_text(text)
    message = refused(StorageError, Study.open, str(tmp_path), "made")
    assert message.startswith(f"{path} is no record of a study: {why}")


def test_notes_become_the_record_of_a_trial(study):
    study.note(3, "started", values=LR, phase="race")
    study.note(3, "report/100", objective=[2.5], metrics={"eval/fid": 2.5})
    study.note(3, "report/200", objective=[math.inf], metrics={"eval/fid": math.nan})
    study.note(3, "pruned", reason="rung of asha")
    trial = study.trials()[3]
    assert (trial.name, trial.values, trial.status, trial.reason) == ("00003", LR, "pruned", "rung of asha")
    assert [r.objective for r in trial.reports] == [(2.5,), (math.inf,)]
    assert math.isnan(trial.reports[1].metrics["eval/fid"])
    assert trial.step == 200
    assert trial.best is trial.reports[0]
    assert trial.started <= trial.reports[0].time <= trial.ended


def test_note_that_is_repeated_counts_once(study):
    study.note(0, "report/100", objective=[2.0], metrics={})
    Study.claim(study.settings).note(0, "report/100", objective=[9.0], metrics={})
    assert [r.objective for r in study.trials()[0].reports] == [(2.0,)]


def test_record_survives_a_torn_last_line(study):
    journal(study, started(0, 0, LR), report(1, 0, 100, 2.0))
    path = study.folder.local / "study.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": 1700000000000, "step": 0, "event": "fini')
    assert study.trials()[0].status == "running"
    again = Study.claim(study.settings)
    again.note(0, "finished")
    trial = again.trials()[0]
    assert (trial.status, trial.step) == ("finished", 100)


def test_status_is_that_of_the_last_note(study):
    for number, status in enumerate(("finished", "pruned", "stopped", "failed")):
        journal(study, started(0, number, LR), (1, number, status, {"reason": status}))
    journal(study, started(0, 4, LR))
    trials = study.trials()
    assert [t.status for t in trials.values()] == ["finished", "pruned", "stopped", "failed", "running"]


def test_member_that_took_over_weights_has_lineage_and_every_value(tmp_path):
    trials = made_population(tmp_path).trials()
    exploited = [trial for trial in trials.values() if trial.lineage]
    assert [(t.number, t.lineage) for t in exploited] == [(2, [(900, 0)]), (3, [(450, 0)])]
    for trial in exploited:
        assert [step for step, _ in trial.history] == [0, trial.lineage[0][0]]
        assert trial.history[-1][1] == trial.values != trial.history[0][1]


def test_ranking_is_by_the_best_report_of_each_trial(study):
    journal(study, started(0, 0, LR), report(1, 0, 100, 2.0), report(2, 0, 200, 9.0))
    journal(study, started(0, 1, LR), report(1, 1, 100, 1.0), started(0, 2, LR), report(1, 2, 100, math.inf))
    journal(study, started(0, 3, LR, of=1), report(1, 3, 100, 0.1))
    assert [t.number for t in ranking(study.trials())] == [1, 0]
    assert [t.number for t in ranking(study.trials(), "confirm")] == [3]


def test_hours_are_used_by_all_and_saved_by_those_ended_early(study):
    journal(study, started(0, 0, LR), report(4, 0, 1500, 2.0), (4, 0, "finished", {}))
    journal(study, started(0, 1, LR), report(1, 1, 500, 3.0), (1, 1, "pruned", {}))
    journal(study, started(0, 2, LR), report(1, 2, 750, 3.0), (1, 2, "stopped", {}))
    journal(study, started(0, 3, LR), report(1, 3, 750, 3.0), (2, 3, "failed", {}))
    journal(study, started(0, 4, LR), report(0.5, 4, 150, 3.0), started(0, 5, LR))
    used, saved = hours(study.trials(), 1500)
    assert used == pytest.approx(4 + 1 + 1 + 2 + 0.5 + 0)
    assert saved == pytest.approx(2 + 1)


def test_times_are_seconds_since_the_epoch(study):
    journal(study, started(2, 0, LR))
    assert study.trials()[0].started == (BEGIN + 2 * HOUR) / 1000


def test_config_of_a_trial_is_the_recorded_one(study):
    expected = keep_config(study, 2, LR)
    assert study.config_of(2) == expected
    assert expected.optim.lr == 1e-3
    assert expected.run.name == "00002"


def test_config_of_an_unknown_trial_is_refused_and_leaves_no_folder(study):
    assert refused(StorageError, study.config_of, 9) == "study 'made' has no trial 9; it has none yet"
    journal(study, started(0, 0, LR), started(0, 1, LR))
    assert refused(StorageError, study.config_of, 9) == "study 'made' has no trial 9; it has 0, 1"
    assert refused(StorageError, study.config_of, 1) == "trial 1 of study 'made' left no config.json; it is running"
    assert study.folder.names(".") == ["study.json", "study.jsonl"]


def test_config_of_a_study_that_was_moved_is_found(study, tmp_path):
    expected = keep_config(study, 2, LR)
    (tmp_path / "elsewhere").mkdir()
    study.folder.local.rename(tmp_path / "elsewhere" / "made")
    assert Study.open(str(tmp_path / "elsewhere"), "made").config_of(2) == expected


def test_trial_of_confirmation_has_the_full_protocol(study):
    race = study.settings.trial_config(0, LR, "race")
    confirm = study.settings.trial_config(1, LR, "confirm")
    assert (race.eval.num_samples, confirm.eval.num_samples) == (1000, study.settings.config.eval.num_samples)
    assert not race.eval.promote and not confirm.eval.promote


def test_grid_decides_on_the_number_of_trials(tmp_path):
    settings = settings_of(tmp_path)
    small = replace(settings, search=Search(name="made", algorithm="grid", grid_points=2))
    # lr 2 x discriminator_lr 2 x betas 3 x steps 2 x (batch, or none with 2 gammas)
    assert len(small.points()) == 2 * 2 * 3 * 2 * 3


def test_finalist_counts_when_all_its_seeds_have_ended_with_a_score(study):
    for number in (0, 1):
        journal(study, started(0, number, LR), report(1, number, 1500, 1.0 + number), (1, number, "finished", {}))
    for number, of in ((2, 0), (3, 0), (4, 1), (5, 1)):
        journal(study, started(2, number, LR, of=of), report(3, number, 1500, float(number)))
    for number in (2, 3, 4):
        journal(study, (3, number, "finished", {}))
    (only,) = confirmed(study.trials())
    assert only == Confirmed(0, 1.0, (2.0, 3.0), (2, 3))
    assert (only.mean, only.best_trial) == (2.5, 2)
    assert only.spread == pytest.approx(math.sqrt(0.5))
    journal(study, (3, 5, "finished", {}))
    assert [finalist.number for finalist in confirmed(study.trials())] == [0, 1]


def finalist(number: int, raced: float, *values: float) -> Confirmed:
    return Confirmed(number, raced, values, tuple(range(10, 10 + len(values))))


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (
            finalist(2, 2.0, 2.9, 3.1),
            "trial 1 led trial 2 by 1 in the race and by 0.4 over seeds, above the spread of 0.1414: "
            "60% of it was luck",
        ),
        (
            finalist(2, 2.0, 2.6, 2.8),
            "trial 1 led trial 2 by 1 in the race and by 0.1 over seeds, within the spread of 0.1414: "
            "the lead may be luck",
        ),
        (
            finalist(2, 2.0, 2.0, 2.2),
            "trial 1 led trial 2 by 1 in the race and by -0.5 over seeds: its lead was luck",
        ),
    ],
)
def test_luck_is_what_other_seeds_leave_of_the_lead(second, sentence):
    assert luck([finalist(1, 1.0, 2.5, 2.7), second]) == sentence
    assert luck([second, finalist(1, 1.0, 2.5, 2.7)]) == sentence


def test_luck_of_one_finalist_is_unknown():
    assert luck([finalist(1, 1.0, 2.0)]) == "one finalist: nothing to compare its lead with"


def test_luck_of_one_seed_is_unknown():
    assert luck([finalist(1, 1.0, 2.5), finalist(2, 2.0, 3.0)]) == (
        "trial 1 led trial 2 by 1 in the race and by 0.5 with another seed: one seed does not tell how much was luck"
    )


def test_trial_without_a_note_of_its_end_runs():
    assert TrialRecord(0).status == "running"
    assert TrialRecord(0).best is None

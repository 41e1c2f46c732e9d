"""Runs that are watched: stopped, taken back, or left alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from evaluation_snapshots import save_classifier
from mlflow import MlflowClient
from ranks import run_ranks
from safetensors.torch import load_file
from torch.distributions import Categorical

from genray import checkpoint, cli, mlflow_registry, snapshot
from genray.config import Config, Data, Health, Optim, Train
from genray.data.images import load_images
from genray.distributed import World, current
from genray.errors import DivergenceError
from genray.evaluation.features import class_probabilities, extract
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.scoring import write_scores
from genray.health import late_finding
from genray.health_signals import CLASS_ENTROPY, FEATURE_DISTANCE
from genray.models.dcgan import DCGAN
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.storage import RunFolder
from genray.tracking import JsonlTracker, NullTracker, read_journal
from genray.trainer import Outcome, Trainer, train

CPU = World(0, 1, torch.device("cpu"))
OFF = Health(score_rule="off", collapse_rule="off", balance_rule="off", posterior_rule="off", skipped_rule="off")


def gan_config(health: Health, num_steps: int = 12) -> Config:
    steps = {"checkpoint_every": 2, "log_every": 1, "sample_every": 4, "keep": 20}
    return tiny_config(train=Train(num_steps=num_steps, global_batch_size=16, **steps), health=health)


def vae_config(health: Health, **train_fields: int) -> Config:
    fields = {"num_steps": 9, "checkpoint_every": 2, "log_every": 1, "sample_every": 0} | train_fields
    model = MLPVAE(latent_dim=4, hidden=16)
    return tiny_config(model=model, objective=ELBO(), train=Train(global_batch_size=16, **fields), health=health)


def run(config: Config, storage: Path) -> tuple[RunFolder, Outcome]:
    folder = RunFolder.open(str(storage), config.run.name)
    return folder, train(config, load_images(config.data, "train"), folder, current(False))


def leave_scores(folder: RunFolder, values: dict[int, float], metric: str = "fid") -> None:
    """Scores of snapshots, as a scorer leaves them in the folder of a run."""
    protocol = Protocol(metric=metric, data="digits", split="test", data_digest="", num_samples=64, num_seeds=1)
    (folder.local / checkpoint.SCORES).mkdir(exist_ok=True)
    for step, value in values.items():
        path = folder.local / checkpoint.SCORES / f"{checkpoint.step_name(step)}.json"
        write_scores(path, [Score(metric, value, 0.0, protocol)])
    best = (max if metric == "accuracy" else min)(values, key=lambda step: values[step])
    note = {"name": checkpoint.step_name(best), "step": best, "metric": metric, "value": values[best]}
    (folder.local / checkpoint.BEST).write_text(json.dumps(note))


def events_of(folder: RunFolder) -> list[tuple[int, str, dict[str, object]]]:
    entries = read_journal(folder.local / "journal" / "train.jsonl")[0]
    return [(e["step"], e["event"], e["fields"]) for e in entries if "event" in e]


def numbers_of(folder: RunFolder) -> dict[tuple[int, str], float]:
    entries = read_journal(folder.local / "journal" / "train.jsonl")[0]
    found = {(e["step"], key): value for e in entries for key, value in e.get("metrics", {}).items()}
    return {at: value for at, value in found.items() if not at[1].startswith(("perf/", "system/"))}


def state_of(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder.local / "checkpoints" / checkpoint.step_name(step) / checkpoint.TENSORS)


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in left.keys() | right.keys() if not torch.equal(left[name], right[name])]


COLLAPSED = {2: 10.0, 4: 100.0, 6: 100.0}


def collapsed_run(health: Health, storage: Path) -> tuple[RunFolder, Outcome]:
    """A run of six steps whose scores say that it collapsed after the second, gone on with for six more."""
    folder, outcome = run(gan_config(health, num_steps=6), storage)
    assert outcome.stopped is None
    leave_scores(folder, COLLAPSED)
    return run(gan_config(health, num_steps=12), storage)


def test_run_whose_scores_collapse_is_stopped_at_its_next_checkpoint(tmp_path):
    folder, outcome = collapsed_run(Health(score_patience=2), tmp_path)
    assert outcome.step == 8
    assert outcome.stopped == (
        "health.score_rule at step 8: fid 100 of step 6 is the last of 2 scores in a row that are worse than the best, "
        "10 of step 2, by more than the factor 1.5"
    )
    assert folder.names("checkpoints")[-1] == folder.names("snapshots")[-1] == checkpoint.step_name(8)
    step, name, fields = events_of(folder)[-1]
    assert (step, name, fields["action"], fields["value"]) == (8, "health.score", "stop", 100.0)


def test_stopped_run_started_again_says_so_and_trains_nothing(tmp_path):
    _, first = collapsed_run(Health(score_patience=2), tmp_path)
    _, again = run(gan_config(Health(score_patience=2)), tmp_path)
    assert (again.step, again.resumed_from, again.stopped) == (8, 8, first.stopped)


def test_stopped_run_goes_on_to_its_end_where_the_rule_only_warns(tmp_path):
    collapsed_run(Health(score_patience=2), tmp_path)
    _, again = run(gan_config(Health(score_patience=2, score_rule="warn")), tmp_path)
    assert (again.step, again.stopped) == (12, None)


def test_score_that_cannot_be_read_is_left_out(tmp_path, caplog):
    folder, _ = run(gan_config(Health(), num_steps=2), tmp_path)
    leave_scores(folder, COLLAPSED)
    (folder.local / "scores" / "step-000000004.json").write_text("{")
    assert sorted(checkpoint.FolderStore(folder).scores()) == [2, 6]
    assert "holds no scores" in caplog.text


ROLLBACK = Health(score_rule="rollback", score_patience=2)


def test_rollback_takes_the_best_checkpoint_and_half_the_learning_rate(tmp_path):
    folder, outcome = collapsed_run(ROLLBACK, tmp_path)
    left, right = state_of(folder, 2), state_of(folder, 8)
    assert [name for name in differing(left, right) if not name.startswith(("meter", "skipped", "own_fault"))] == []
    assert (outcome.step, outcome.stopped) == (12, None)
    numbers = numbers_of(folder)
    assert [numbers[step, "optim/lr"] for step in (8, 9, 12)] == [1e-3, 5e-4, 5e-4]
    told = [(step, name, f["action"], f["to_step"]) for step, name, f in events_of(folder) if name == "health.score"]
    assert told == [(8, "health.score", "rollback", 2)]


def test_steps_after_a_rollback_are_new_ones(tmp_path):
    """No step is repeated: the journal keeps what went wrong, and goes on with the next step."""
    folder, _ = collapsed_run(ROLLBACK, tmp_path)
    steps = [step for step, key in numbers_of(folder) if key == "generator/loss"]
    assert steps == list(range(1, 13))


def test_run_resumed_after_a_rollback_ends_bit_identical(tmp_path):
    folder, _ = collapsed_run(ROLLBACK, tmp_path)
    whole = state_of(folder, 12)
    for step in (10, 12):
        folder.remove(f"checkpoints/{checkpoint.step_name(step)}")
    _, outcome = run(gan_config(ROLLBACK), tmp_path)
    assert outcome.resumed_from == 8
    assert differing(whole, state_of(folder, 12)) == []


def test_run_out_of_rollbacks_is_stopped(tmp_path):
    _, outcome = collapsed_run(replace(ROLLBACK, max_rollbacks=0), tmp_path)
    assert outcome.step == 8 and outcome.stopped is not None


def test_rollback_without_a_checkpoint_is_a_stop(tmp_path):
    health = Health(posterior_rule="rollback", posterior_kl=1e9, patience=1)
    _, outcome = run(vae_config(health, checkpoint_every=9), tmp_path)
    assert outcome.step == 1
    assert outcome.stopped is not None and outcome.stopped.endswith("there is no checkpoint to go back to")


def test_rule_of_log_points_stops_a_resumed_run_where_it_stops_an_undisturbed_one(tmp_path):
    health = Health(posterior_rule="stop", posterior_kl=1e9, patience=3)
    whole, outcome = run(vae_config(health), tmp_path / "whole")
    assert outcome.step == 3 and outcome.stopped is not None
    run(vae_config(health, num_steps=2), tmp_path / "halves")
    halves, resumed = run(vae_config(health), tmp_path / "halves")
    assert (resumed.resumed_from, resumed.step, resumed.stopped) == (2, 3, outcome.stopped)
    assert differing(state_of(whole, 3), state_of(halves, 3)) == []


def test_burst_of_skipped_updates_is_an_error_only_where_no_rule_answers_it(tmp_path):
    diverging = vae_config(Health(), num_steps=60, max_skipped=5, log_every=10, checkpoint_every=60)
    diverging = replace(diverging, optim=Optim(lr=1e30))
    with pytest.raises(DivergenceError):
        run(diverging, tmp_path / "error")
    stopping = replace(diverging, health=Health(skipped_rule="stop"))
    folder, outcome = run(stopping, tmp_path / "stop")
    assert outcome.stopped is not None and "were skipped for non-finite gradients" in outcome.stopped
    assert folder.names("snapshots") == [checkpoint.step_name(outcome.step)]


def test_generator_with_all_weights_zero_is_called_collapsed(tmp_path, digits):
    config = gan_config(Health(collapse_rule="stop"))
    folder = RunFolder.open(str(tmp_path), "tiny")
    tracker = JsonlTracker(folder.local / "journal", "train")
    trainer = Trainer(config, digits, folder, store=checkpoint.FolderStore(folder), tracker=tracker, world=CPU)
    trainer.update()
    for parameter in trainer.ema.module.parameters():
        parameter.zero_()
    trainer.sample()
    assert trainer.heed()
    assert trainer.monitor.stopped is not None and trainer.monitor.stopped.startswith("health.collapse_rule at step 1")


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_rules_change_no_number(tmp_path, norm):
    base = gan_config(Health())
    gamma = 0.0 if norm == "batch" else 1.0
    model = DCGAN(latent_dim=8, width=8, generator_norm="batch", discriminator_norm=norm)
    base = replace(base, model=model, objective=replace(base.objective, gamma=gamma))
    watched, _ = run(base, tmp_path / "watched")
    unwatched, _ = run(replace(base, health=OFF), tmp_path / "unwatched")
    assert differing(state_of(watched, 12), state_of(unwatched, 12)) == []
    assert numbers_of(watched) == numbers_of(unwatched)


def run_with_extractor(storage: Path, **options: object) -> RunFolder:
    save_classifier(RunFolder.open(str(storage), "tiny").local / checkpoint.EXTRACTOR, **options)
    return run(gan_config(Health()), storage)[0]


def test_samples_of_a_run_with_an_extractor_are_watched_through_its_eyes_too(tmp_path, digits):
    folder = run_with_extractor(tmp_path)
    numbers = numbers_of(folder)
    at = {name: [step for step, key in numbers if key == name] for name in (FEATURE_DISTANCE, CLASS_ENTROPY)}
    assert at == {FEATURE_DISTANCE: [4, 8, 12], CLASS_ENTROPY: [4, 8, 12]}
    trainer = Trainer(
        gan_config(Health()), digits, folder, store=checkpoint.FolderStore(folder), tracker=NullTracker(), world=CPU
    )
    trainer.resume()
    images, labels = trainer.draw_samples()
    extractor = snapshot.load(folder.local / checkpoint.EXTRACTOR)
    assert labels is None
    expected = torch.pdist(extract(extractor, images).double()).mean()
    assert numbers[12, FEATURE_DISTANCE] == pytest.approx(float(expected), rel=1e-4)
    frequencies = Categorical(probs=class_probabilities(extractor, images).double().mean(0))
    assert numbers[12, CLASS_ENTROPY] == pytest.approx(float(frequencies.entropy()), rel=1e-6)


def test_extractor_in_the_folder_changes_no_number_of_a_run(tmp_path):
    watched, (plain, _) = run_with_extractor(tmp_path / "watched"), run(gan_config(Health()), tmp_path / "plain")
    assert differing(state_of(watched, 12), state_of(plain, 12)) == []
    more = numbers_of(watched).items() - numbers_of(plain).items()
    assert {key for (_, key), _ in more} == {FEATURE_DISTANCE, CLASS_ENTROPY}


def test_extractor_that_does_not_take_the_images_does_not_stop_a_run(tmp_path):
    folder = run_with_extractor(tmp_path, data=Data(name="digits", image_size=(16, 16)))
    assert not {key for _, key in numbers_of(folder)} & {FEATURE_DISTANCE, CLASS_ENTROPY}
    assert folder.names("snapshots")[-1] == checkpoint.step_name(12)


def test_extractor_that_is_damaged_does_not_stop_a_run(tmp_path, caplog):
    save_classifier(RunFolder.open(str(tmp_path), "tiny").local / checkpoint.EXTRACTOR)
    (tmp_path / "tiny" / checkpoint.EXTRACTOR / "model.safetensors").write_bytes(b"")
    folder, _ = run(gan_config(Health()), tmp_path)
    assert not {key for _, key in numbers_of(folder)} & {FEATURE_DISTANCE, CLASS_ENTROPY}
    assert caplog.text.count("features of the samples are not watched: ") == 1


def _outcome_and_weights(config: Config, storage: str) -> tuple[Outcome, list[torch.Tensor]]:
    world = current(False)
    folder = RunFolder.open(storage, config.run.name)
    trainer = Trainer(
        config,
        load_images(config.data, "train"),
        folder,
        store=checkpoint.store_for(folder, world.rank),
        tracker=JsonlTracker(folder.local / f"journal-{world.rank}", "train"),
        world=world,
    )
    outcome = trainer.fit()
    return outcome, [p.detach().clone() for module in trainer.networks.bare.values() for p in module.parameters()]


@pytest.mark.parametrize("health", [Health(score_patience=2), ROLLBACK], ids=["stop", "rollback"])
def test_two_ranks_decide_alike(tmp_path, health):
    """Only rank 0 reads the scores."""
    folder, _ = run(gan_config(health, num_steps=6), tmp_path)
    leave_scores(folder, COLLAPSED)
    (one, ours), (two, theirs) = run_ranks(_outcome_and_weights, 2, gan_config(health), str(tmp_path))
    assert (one.step, one.stopped) == (two.step, two.stopped)
    assert one.step == (8 if health.score_rule == "stop" else 12)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    left, right = (read_journal(folder.local / f"journal-{rank}" / "train.jsonl")[0] for rank in (0, 1))
    found = [[e["fields"] for e in entries if e.get("event", "").startswith("health.")] for entries in (left, right)]
    assert found[0] == found[1] != []


def test_scores_that_come_after_the_last_step_are_said_to_be_a_collapse():
    protocol = Protocol(metric="fid", data="digits", split="test", data_digest="", num_samples=64, num_seeds=1)
    scores = {step: [Score("fid", value, 0.0, protocol)] for step, value in COLLAPSED.items()}
    assert late_finding(Health(), scores) is None
    assert "fid 100 of step 6" in str(late_finding(Health(score_patience=2), scores))
    assert late_finding(Health(score_patience=2, score_rule="off"), scores) is None


@pytest.mark.mlflow
@pytest.mark.filterwarnings("ignore:.*pip version")
def test_stopped_job_exits_with_3_and_registers_its_best_snapshot(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    fixed = {
        "cluster.num-workers": "0",
        "run.storage": str(tmp_path),
        "tracking.uri": uri,
        "optim.schedule": "constant",
        "train.checkpoint-every": "2",
        "train.keep": "20",
        "health.score-patience": "2",
    }
    arguments = [part for name, value in fixed.items() for part in (f"--{name}", value)]
    assert cli.train(["digits-classifier", *arguments, "--train.num-steps", "6"]) == 0
    folder = RunFolder.open(str(tmp_path), "digits-classifier")
    leave_scores(folder, {2: 0.99, 4: 0.1, 6: 0.1}, metric="accuracy")
    assert cli.train(["digits-classifier", *arguments, "--train.num-steps", "12"]) == 3
    run_id = json.loads((folder.local / "mlflow.json").read_text())["run_id"]
    tags = MlflowClient(uri).get_run(run_id).data.tags
    assert tags["genray.stopped"].startswith("health.score_rule at step 8: accuracy 0.1 of step 6 is the last of 2")
    assert json.loads(tags["genray.event.health.score"])["action"] == "stop"
    version = mlflow_registry.resolve(uri, "digits-classifier@candidate")
    assert version.tags["genray.step"] == "2" and version.tags["genray.stopped"] == tags["genray.stopped"]

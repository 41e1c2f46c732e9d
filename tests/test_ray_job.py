"""One job without a cluster (cluster.num_workers=0): tracked, scored, registered, and refused early."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from evaluation_snapshots import save_classifier, save_generator, save_vae
from image_folders import folder_data, make_folder
from mlflow import MlflowClient
from PIL import Image

from genray import cli, mlflow_champion, mlflow_registry, ray_generate, ray_job, snapshot
from genray.config import Cluster, Config, Data, Run, Tracking, Train
from genray.data.generated import request_for
from genray.data.images import load_images
from genray.data.mix import Mix
from genray.errors import ConfigError, DataError, GenrayError, ResumeError, StorageError, TrackingError
from genray.models.tokenizer import AdversarialTokenizer
from genray.models.vae import MLPVAE
from genray.objectives.adversarial_tokenizer import AdversarialTokenization
from genray.objectives.elbo import ELBO
from genray.paths import resolved
from genray.presets import preset
from genray.start import read_weights
from genray.tracking import read_journal
from genray.transfer import Transfer

LONG = pytest.mark.skipif("GENRAY_LONG" not in os.environ, reason="a Ray more; set GENRAY_LONG=1")
ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("ignore:.*pip version")]


def job_config(storage: Path, **sections: object) -> Config:
    defaults: dict[str, object] = {
        "cluster": Cluster(num_workers=0),
        "tracking": Tracking(uri=f"sqlite:///{storage / 'mlflow.db'}"),
    }
    base = tiny_config(**(defaults | sections))
    return resolved(replace(base, run=replace(base.run, storage=str(storage))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A classifier and a GAN of the digits, trained and registered one after the other."""
    storage = tmp_path_factory.mktemp("job")
    quick = preset("digits-classifier")
    classifier = replace(quick, train=replace(quick.train, num_steps=40, checkpoint_every=40, log_every=20))
    here = {"cluster": Cluster(num_workers=0), "tracking": Tracking(uri=f"sqlite:///{storage / 'mlflow.db'}")}
    ray_job.run(resolved(replace(classifier, run=replace(classifier.run, storage=str(storage)), **here)))
    config = job_config(storage)
    return storage, config, ray_job.run(config)


def test_job_writes_down_the_splits_of_a_classifier(finished):
    storage, _, _ = finished
    noted = json.loads((storage / "digits-classifier" / "splits.json").read_text())
    for split in ("train", "test"):
        images = load_images(Data(name="digits"), split)
        assert noted[split]["digest"] == images.digest and noted[split]["images"] == len(images)


def test_job_whose_mix_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    source = tmp_path / "fakes"
    vae = save_vae(tmp_path / "vae")
    ray_generate.write(source, request_for(snapshot.load(vae), "v", "3", num=4), vae, num_workers=0)
    config = job_config(tmp_path / "runs", mix=Mix(sources=(str(source),)))
    with pytest.raises(DataError, match=r"class '0' wants 142 generated images, and mix\.sources has 0 of it"):
        ray_job.run(config)
    assert {path.name for path in tmp_path.iterdir()} == {"fakes", "vae"}


@pytest.mark.parametrize("on_leak", ["stop", "warn"])
def test_job_stops_at_a_leaking_split_unless_told_to_warn(tmp_path, on_leak, caplog):
    names = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("a", "b") for i in range(4)]
    root = make_folder(tmp_path / "images", names)
    (root / "test/a/0.png").write_bytes((root / "train/b/1.png").read_bytes())
    quick = preset("digits-classifier")
    config = replace(
        quick,
        data=folder_data(root, tmp_path, on_leak=on_leak),
        train=replace(quick.train, num_steps=2, global_batch_size=4),
        cluster=Cluster(num_workers=0),
        tracking=Tracking(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"),
    )
    config = resolved(replace(config, run=replace(config.run, storage=str(tmp_path / "runs"))))
    if on_leak == "stop":
        with pytest.raises(DataError, match=r"^1 of 8 images of split 'test' of 'folder' are in split 'train' too"):
            ray_job.run(config)
        assert not (tmp_path / "runs" / config.run.name / "config.json").exists()
    else:
        assert ray_job.run(config).outcome.step == 2
        assert "1 of 8 images of split 'test'" in caplog.text


def test_job_starts_from_a_registered_model_and_says_what_it_takes(finished, capsys):
    storage, _, _ = finished
    quick = preset("digits-classifier")
    config = replace(
        quick,
        run=replace(quick.run, name="transferred", storage=str(storage)),
        transfer=Transfer(source="digits-classifier/1", trunk_lr=0.0),
        train=replace(quick.train, num_steps=1),
        cluster=Cluster(num_workers=0),
        tracking=Tracking(uri=f"sqlite:///{storage / 'mlflow.db'}"),
    )
    ray_job.run(resolved(config))
    noted = json.loads((storage / "transferred" / "transfer.json").read_text())
    taken, digest = read_weights(storage / "transferred" / "start")
    assert noted["sha256"] == digest and set(noted["taken"]) == set(taken) and noted["left"] == noted["new"] == []
    assert f"starts    from digits-classifier/1 ({digest[:12]}…): {len(taken)} taken" in capsys.readouterr().out
    (place,) = (storage / "transferred" / "checkpoints").iterdir()
    after, name = read_weights(place)[0], "layers.2.first.0.weight"
    assert torch.equal(after[f"modules/classifier/{name}"], taken[name])


def tokenized(storage: Path, **sections: object) -> Config:
    """Two steps of a tokenizer of the digits with a perceptual term."""
    model = AdversarialTokenizer(num_codes=16, code_dim=4, width=8, num_downsamplings=1, discriminator_width=8)
    objective = AdversarialTokenization(perceptual="digits-classifier/1")
    steps = Train(num_steps=2, global_batch_size=32, checkpoint_every=1, log_every=1, sample_every=0)
    return job_config(storage, **({"model": model, "objective": objective, "train": steps} | sections))


def test_perceptual_term_compares_by_the_classifier_that_the_registry_had(finished):
    storage, _, _ = finished
    ray_job.run(tokenized(storage, run=Run(name="tokens")))
    entries = read_journal(storage / "tokens" / "journal" / "train.jsonl")[0]
    logged = [entry["metrics"]["tokenizer/perceptual"] for entry in entries if "metrics" in entry]
    assert len(logged) == 2 and all(0 < value < 2 for value in logged)
    registered = mlflow_registry.pull(f"sqlite:///{storage / 'mlflow.db'}", "digits-classifier/1", storage / "pulled")
    assert snapshot.load(storage / "tokens" / "perceptual").digest == snapshot.load(registered).digest


def test_run_goes_on_with_the_classifier_of_its_perceptual_term_though_its_source_has_gone(tmp_path):
    source = save_classifier(tmp_path / "classifier")
    config = tokenized(tmp_path, objective=AdversarialTokenization(perceptual=str(source)))
    ray_job.run(config)
    shutil.rmtree(source)
    longer = ray_job.run(replace(config, train=replace(config.train, num_steps=3)))
    assert (longer.outcome.resumed_from, longer.outcome.step) == (2, 3)


def test_perceptual_term_that_cannot_be_had_is_refused_and_tried_again_from_the_start(finished):
    storage, _, _ = finished
    for name, message in (
        ("digits-generator/1", "snapshot of a generator"),
        ("digits-classifier/99", "unknown version"),
    ):
        config = tokenized(
            storage, objective=AdversarialTokenization(perceptual=name), run=Run(name=name[:8] + name[-1])
        )
        with pytest.raises(GenrayError, match=message):
            ray_job.run(config)
        assert not (storage / config.run.name / "perceptual").exists()


def mixed(storage: Path, source: str, **more: object) -> Config:
    """One step of a classifier, with half as many images of a generator as there are real ones."""
    quick = preset("digits-classifier")
    config = replace(
        quick,
        run=replace(quick.run, name="mixed", storage=str(storage)),
        mix=Mix(sources=(source,), ratio=0.5, **more),
        train=replace(quick.train, num_steps=1),
        cluster=Cluster(num_workers=0),
        tracking=Tracking(uri=f"sqlite:///{storage / 'mlflow.db'}"),
    )
    return resolved(config)


def train_counts(storage: Path) -> dict[str, int]:
    noted = json.loads((storage / "mixed" / "splits.json").read_text())
    counts: dict[str, int] = noted["train"]["classes"]
    return counts


def test_job_draws_the_images_of_a_generator_that_it_is_given(tmp_path):
    generator = save_generator(tmp_path / "generator", conditional=True)
    ray_job.run(mixed(tmp_path, str(generator)))
    real = torch.bincount(load_images(Data(name="digits"), "train").labels).tolist()
    assert list(train_counts(tmp_path).values()) == [n + round(n / 2) for n in real]
    noted = json.loads((tmp_path / "mixed" / "drawn-0" / "manifest.json").read_text())["request"]
    assert noted["generator"] == str(generator) and noted["num"] == 10 * round(max(real) / 2)


def test_job_that_is_given_another_generator_than_it_began_with_is_refused(tmp_path):
    first, second = (save_generator(tmp_path / name, conditional=True, seed=n) for n, name in enumerate("ab"))
    ray_job.run(mixed(tmp_path, str(first)))
    before = (tmp_path / "mixed" / "drawn-0" / "manifest.json").read_bytes()
    with pytest.raises(ResumeError, match=f"has images of mix.sources={first}, and is now given {second}"):
        ray_job.run(mixed(tmp_path, str(second)))
    assert (tmp_path / "mixed" / "drawn-0" / "manifest.json").read_bytes() == before


def test_registered_generator_without_classes_is_no_source_and_leaves_nothing(finished):
    storage, _, _ = finished
    with pytest.raises(ConfigError, match=r"digits-generator/1 is unconditional: say which class its images are of"):
        ray_job.run(mixed(storage, "digits-generator/1"))
    assert not list((storage / "mixed").glob("drawn-*"))


def test_job_leaves_every_metric_of_its_journals_in_mlflow_once(finished):
    storage, config, report = finished
    client = MlflowClient(config.tracking.uri)
    expected = {}
    for name in ("train", "eval"):
        for entry in read_journal(storage / "tiny" / "journal" / f"{name}.jsonl")[0]:
            for key, value in entry.get("metrics", {}).items():
                expected.setdefault(key, []).append((entry["step"], value))
    assert "eval/fid" in expected and "generator/loss" in expected and "system/cpu_percent" in expected
    for key, points in expected.items():
        stored = [(m.step, m.value) for m in client.get_metric_history(report.run_id, key)]
        assert sorted(stored) == sorted(points)
    assert report.delivery.complete


def test_job_ends_with_a_champion_chosen_by_fid(finished):
    _, config, report = finished
    assert [score.metric for score in report.scores][:2] == ["fid", "kid"]
    version = mlflow_registry.resolve(config.tracking.uri, "digits-generator@champion")
    assert version.number == report.version == 1
    assert report.verdict.startswith("digits-generator/1 is the first champion: fid ")


def test_mlflow_run_says_what_was_trained_from_what(finished):
    _, config, report = finished
    run = MlflowClient(config.tracking.uri).get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == "8"
    assert len(run.data.tags["genray.data.sha256"]) == 64
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    artifacts = {f.path for f in MlflowClient(config.tracking.uri).list_artifacts(report.run_id)}
    assert {"config.json", "images"} <= artifacts


def test_time_lapse_of_a_job_is_that_of_its_folder_of_its_snapshots_and_of_its_registered_model(finished, tmp_path):
    storage, config, _ = finished
    snapshots = sorted((storage / "tiny" / "snapshots").iterdir())
    films = []
    for number, model in enumerate((storage / "tiny", snapshots[-1], "digits-generator/1")):
        out = tmp_path / f"{number}.gif"
        words = ["sample", str(model), "--kind", "time-lapse", "--out", str(out), "--uri", config.tracking.uri]
        assert cli.main(words) == 0
        films.append(out.read_bytes())
    assert films[0] == films[1] == films[2]
    with Image.open(tmp_path / "2.gif") as film:
        assert film.n_frames == 2  # of steps 4 and 8


def test_registered_model_of_a_run_without_grids_has_no_time_lapse(finished, capsys, tmp_path):
    _, config, _ = finished
    words = ["sample", "digits-classifier/1", "--kind", "time-lapse", "--out", str(tmp_path / "x.gif")]
    assert cli.main([*words, "--uri", config.tracking.uri]) == 1
    assert "has no time-lapse.gif" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_finished_job_run_again_trains_nothing_and_registers_nothing_new(finished):
    _, config, report = finished
    again = ray_job.run(config)
    assert again.outcome.resumed_from == again.outcome.step == 8
    assert (again.run_id, again.version) == (report.run_id, report.version)


def test_another_config_under_the_name_of_a_run_is_refused_before_it_starts(finished):
    _, config, _ = finished
    with pytest.raises(ResumeError, match=r"train\.seed: 0 -> 9"):
        ray_job.run(replace(config, train=replace(config.train, seed=9)))


def test_vae_and_gan_compete_for_one_champion(finished):
    storage, config, _ = finished
    vae = job_config(
        storage,
        model=MLPVAE(latent_dim=8, hidden=32),
        objective=ELBO(),
        train=Train(num_steps=60, global_batch_size=64, checkpoint_every=60, sample_every=0),
    )
    report = ray_job.run(replace(vae, run=replace(vae.run, name="vae")))
    assert report.version == 2
    assert report.verdict.startswith("digits-generator/2 beats the champion digits-generator/1")
    previous = mlflow_registry.resolve(config.tracking.uri, "digits-generator@previous")
    assert previous.number == 1


def test_registered_model_is_pulled_and_scored_as_the_job_scored_it(finished):
    _, config, report = finished
    with mlflow_champion.local_snapshot("digits-generator/1", config.tracking.uri) as directory:
        scores = mlflow_champion.evaluate(directory, config.tracking.uri, config.data, config.eval)
    assert scores == report.scores


def test_tracking_server_that_is_away_at_the_first_start_is_refused(tmp_path):
    config = job_config(tmp_path, tracking=Tracking(uri="http://127.0.0.1:9"))
    with pytest.raises(
        TrackingError, match=r"tracking\.uri='http://127\.0\.0\.1:9': the MLflow server does not answer"
    ):
        ray_job.run(config)


def test_run_without_an_extractor_goes_on_while_its_tracking_server_is_away(tmp_path, monkeypatch):
    train = Train(num_steps=4, global_batch_size=16, checkpoint_every=2, log_every=1, sample_every=0)
    config = job_config(tmp_path, model=MLPVAE(latent_dim=2, hidden=8), objective=ELBO(), train=train)
    (tmp_path / "tiny").mkdir(parents=True)
    (tmp_path / "tiny" / "mlflow.json").write_text('{"uri": "http://127.0.0.1:9", "run_id": "0"}')
    monkeypatch.setattr(ray_job, "DELIVERY_TIMEOUT_S", 0.0)
    with pytest.raises(TrackingError, match="does not answer"):  # by the registry, when all is trained
        ray_job.run(replace(config, tracking=Tracking(uri="http://127.0.0.1:9")))
    assert (tmp_path / "tiny" / "checkpoints" / "step-000000004").is_dir()


def test_storage_that_cannot_be_written_is_refused(tmp_path):
    config = job_config(tmp_path)
    with pytest.raises(StorageError, match=r"run\.storage='/dev/null/x' cannot be used"):
        ray_job.run(replace(config, run=replace(config.run, storage="/dev/null/x")))


def train_command(storage: Path, *more: str) -> list[str]:
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "digits-vae", "--cluster.num-workers", "0"]
    return [*command, "--run.storage", str(storage), "--tracking.uri", f"sqlite:///{storage / 'mlflow.db'}", *more]


@pytest.mark.slow
def test_failed_job_exits_non_zero_with_the_cause_as_its_last_line(tmp_path):
    arguments = ["--optim.lr", "1e30", "--train.max-skipped", "5", "--train.num-steps", "200"]
    done = subprocess.run(train_command(tmp_path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: phase 'vae' diverged at step ")
    (run,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_run_that_nothing_can_score_registers_its_last_snapshot(tmp_path):
    command = train_command(tmp_path, "--train.num-steps", "4", "--train.checkpoint-every", "2")
    command[command.index("digits-vae")] = "digits-vae-gan"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    last = "registry  digits-generator version 1: not compared with the champion: there is no score"
    assert done.stdout.splitlines()[-1] == last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number"),
    [
        ("0", signal.SIGTERM),
        pytest.param("1", signal.SIGTERM, marks=pytest.mark.ray),
        pytest.param("1", signal.SIGINT, marks=[pytest.mark.ray, LONG]),
    ],
)
def test_job_that_is_told_to_end_closes_its_mlflow_run_as_killed(tmp_path, workers, number):
    command = train_command(tmp_path, "--train.num-steps", "100000", "--cluster.num-workers", workers)
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "digits-vae" / "journal" / "train.jsonl"
    while not any("metrics" in entry for entry in read_journal(journal)[0]):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.1)
    os.kill(job.pid, number)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert err.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    (run,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    assert run.info.status == "KILLED"


def test_nobody_else_may_read_what_a_run_leaves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genray", "train", "digits-vae", "--cluster.num-workers", "0"]
    command += ["--train.num-steps", "4", "--train.sample-every", "2", "--eval.num-samples", "16"]
    command += ["--run.storage", "runs", "--data.cache", "cache", "--tracking.uri", "sqlite:///mlflow.db"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, umask=0o022)
    found = sorted(tmp_path.rglob("*"))
    assert {path.suffix for path in found} >= {".safetensors", ".json", ".jsonl", ".png", ".db"}
    assert [str(path) for path in found if path.stat().st_mode & 0o077] == []

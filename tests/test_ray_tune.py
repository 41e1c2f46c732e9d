"""Searching on a real Ray: trials that share processes, take over weights, and survive their driver."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import ray
from image_folders import make_folder, paint
from ray.cluster_utils import Cluster as Raylets

from genray import ray_study, ray_train, ray_tune
from genray.checkpoint import SCORES, SNAPSHOTS, step_name
from genray.config import Cluster, Config, Data, Eval, Optim, Run, Tracking, Train
from genray.data.images import load_images
from genray.data.mix import Mix
from genray.distributed import current
from genray.errors import ClusterError, ConfigError, DataError, RegistryError, ResumeError
from genray.evaluation.scoring import read_scores, score_snapshot
from genray.models.dcgan import DCGAN
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.objectives.gan import GAN
from genray.ray_trial import Trial
from genray.search import Search
from genray.space import Domain
from genray.storage import RunFolder
from genray.study import ENDED, Settings, Study, ranking
from genray.trainer import train
from genray.transfer import Transfer

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

LONG = pytest.mark.skipif("GENRAY_LONG" not in os.environ, reason="a minute each on two cores; set GENRAY_LONG=1")
LR = {"optim.lr": Domain("log", (1e-4, 1e-2)), "objective.beta": Domain("log", (0.5, 2.0))}


def settings(storage: Path, *, num_workers: int = 1, num_steps: int = 60, **search: Any) -> Settings:
    """A search over a VAE of 8 x 8 digits, scored by the ELBO: a trial takes a second."""
    config = Config(
        run=Run(name="tiny", storage=str(storage / "runs")),
        data=Data(name="digits", cache=str(storage / "cache")),
        model=MLPVAE(latent_dim=2, hidden=16),
        objective=ELBO(),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=num_steps, global_batch_size=16, log_every=10, sample_every=0, checkpoint_every=20),
        eval=Eval(num_samples=64, num_seeds=1, promote=False),
        cluster=Cluster(num_workers=num_workers, cpus_per_worker=0.5),
        tracking=Tracking(uri=f"sqlite:///{storage}/mlflow.db"),
    )
    fields = {"name": "study", "num_trials": 4, "report_every": 20, "num_samples": 64, "confirm_top": 0}
    return Settings(config, Search(**(fields | search)), LR)  # type: ignore[arg-type]


def raced(made: Settings) -> Study:
    """The study after its race, without MLflow."""
    study = Study.claim(made)
    tasks = [{"number": n, "phase": "race", "values": values} for n, values in enumerate(made.points())]
    ray_tune.run_trials(study, tasks, "race", ray_tune.capacity(made.config, made.search))
    return study


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """Tests find no cluster of others by its address, and leave none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    ray.shutdown()


@pytest.fixture
def one_node() -> None:
    """This process is connected to a Ray of two cores, whichever cluster an earlier test left or stopped."""
    if not ray.is_initialized():
        ray_train.connect(2, log_to_driver=False)


def trial(study: Study, number: int, values: dict[str, Any]) -> Trial:
    known = {"storage": study.settings.config.run.storage, "name": study.settings.search.name}
    return Trial(config={"study": known, "trial": {"number": number, "phase": "race", "values": values}})


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([{"CPU": 4.0}], 2),
        ([{"CPU": 1.0}, {"CPU": 1.0}], 1),
        ([{"CPU": 1.0}], 0),
        ([{"CPU": 3.0}, {"CPU": 1.0}, {"GPU": 8.0}], 2),
    ],
)
def test_trials_are_counted_whole(nodes: list[dict[str, float]], wanted: int) -> None:
    assert ray_tune.num_fitting([{"CPU": 1.0}, {"CPU": 1.0}], nodes) == wanted


def test_four_quarters_fit_on_a_gpu_but_not_two_workers_of_one_trial(tmp_path: Path) -> None:
    made = settings(tmp_path, gpu_fraction=0.25)
    one = replace(made.config, cluster=Cluster(num_workers=1, use_gpu=True))
    two = replace(made.config, cluster=Cluster(num_workers=2, use_gpu=True))
    node = [{"CPU": 16.0, "GPU": 1.0}]
    assert ray_tune.num_fitting(ray_tune.bundles(one, made.search), node) == 4
    assert ray_tune.num_fitting(ray_tune.bundles(two, made.search), node) == 0


def test_a_trial_that_never_fits_is_refused_at_once(one_node: None, tmp_path: Path) -> None:
    config = replace(settings(tmp_path).config, cluster=Cluster(num_workers=16))
    with pytest.raises(ClusterError, match=r"^no trial fits on the cluster: 16 workers of 1 CPU each are asked for"):
        ray_tune.capacity(config, Search())


def test_asha_ends_every_trial_and_the_best_saw_all_steps(one_node: None, tmp_path: Path) -> None:
    study = raced(settings(tmp_path, num_trials=6, reduction_factor=2))
    trials = study.trials()
    assert sorted(trials) == list(range(6))
    assert {t.status for t in trials.values()} == {"finished", "pruned"}
    assert ranking(trials)[0].status == "finished"
    assert all(t.reports[-1].step == 60 for t in trials.values() if t.status == "finished")
    assert all(t.step < 60 for t in trials.values() if t.status == "pruned")


@pytest.mark.parametrize(
    "search",
    [
        {"algorithm": "tpe"},
        pytest.param({"scheduler": "hyperband"}, marks=LONG),
        {"algorithm": "nsga2", "scheduler": "fifo", "metric": ("elbo", "kl")},
    ],
    ids=lambda search: "-".join(str(v) for v in search.values()),
)
def test_every_algorithm_ends_with_all_of_its_trials(one_node: None, tmp_path: Path, search: dict[str, Any]) -> None:
    trials = raced(settings(tmp_path, num_steps=40, **search)).trials()
    assert sorted(trials) == [0, 1, 2, 3]
    assert all(t.status in ("finished", "pruned") and t.reports for t in trials.values())
    assert len({tuple(sorted(t.values.items())) for t in trials.values()}) == 4


@pytest.mark.parametrize("scheduler", ["pbt", pytest.param("pb2", marks=LONG)])
def test_the_worst_of_a_population_take_over_the_best(one_node: None, tmp_path: Path, scheduler: str) -> None:
    study = raced(settings(tmp_path, scheduler=scheduler))
    trials = study.trials()
    assert all(t.status == "finished" and t.step == 60 for t in trials.values())
    lineage = [(n, step, donor) for n, t in trials.items() for step, donor in t.lineage]
    assert [step for _, step, _ in sorted(lineage, key=lambda pair: pair[1])] == [20, 40]
    for number, step, donor in lineage:
        at = {n: next(r.objective for r in t.reports if r.step == step) for n, t in trials.items()}
        assert (at[donor], at[number]) == (min(at.values()), max(at.values()))
        assert all(LR[name].has(value) for name, value in trials[number].values.items())


@pytest.mark.timeout(900)
def test_two_ranks_of_a_trial_end_as_if_one_had_not_been_killed(one_node: None, tmp_path: Path) -> None:
    calm = trial(Study.claim(settings(tmp_path / "calm", num_workers=2)), 0, {"optim.lr": 1e-3})
    wanted = [calm.step()["objective"] for _ in range(3)]
    calm.cleanup()
    torn = trial(Study.claim(settings(tmp_path / "torn", num_workers=2)), 0, {"optim.lr": 1e-3})
    found = [torn.step()["objective"]]
    ray.kill(torn.members[0])
    found += [torn.step()["objective"] for _ in range(2)]
    torn.cleanup()
    assert found == wanted


def mortal(fell: Path, times: int) -> type[Trial]:
    """A trial whose process dies this many times on its way to another, counted in the file `fell`."""

    class Mortal(Trial):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            if (deaths := len(fell.read_bytes())) < times:
                fell.write_bytes(b"x" * (deaths + 1))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    fell.touch()
    return Mortal


@pytest.mark.parametrize("search", [{"algorithm": "tpe"}, {"scheduler": "pbt", "num_trials": 2}])
def test_a_process_that_dies_on_its_way_to_the_next_trial_costs_none(
    one_node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any]
) -> None:
    monkeypatch.setattr(ray_tune, "Trial", mortal(tmp_path / "fell", 1))
    study = raced(settings(tmp_path, **({"num_trials": 3, "max_concurrent": 1, "scheduler": "fifo"} | search)))
    assert (tmp_path / "fell").read_bytes() == b"x"
    found = {number: (trial.status, trial.step) for number, trial in study.trials().items()}
    assert found == dict.fromkeys(range(study.settings.search.num_trials), ("finished", 60))


def test_a_trial_that_never_gets_a_living_process_has_failed(
    one_node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "Trial", mortal(tmp_path / "fell", 100))
    study = raced(settings(tmp_path, num_trials=2, max_concurrent=1, scheduler="fifo", max_failures=0))
    first, second = study.trials()[0], study.trials()[1]
    assert (first.status, second.status) == ("finished", "failed")
    assert second.reason == "its process died before it began, 1 times in a row"


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_ray_tune import settings
from genray import ray_study
search = dict(num_trials={num_trials}, reduction_factor=2, confirm_top=1, confirm_seeds=2)
ray_study.run(settings(Path({storage!r}), num_workers=2, **search))
"""


def drive(storage: Path, address: str, num_trials: int) -> subprocess.Popen[bytes]:
    code = DRIVER.format(tests=str(Path(__file__).parent), storage=str(storage), num_trials=num_trials)
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"RAY_ADDRESS": address})


def ended(storage: Path) -> set[int]:
    try:
        trials = Study.open(str(storage / "runs"), "study").trials()
    except OSError:
        return set()
    return {number for number, t in trials.items() if t.status in ENDED}


def wait_for(storage: Path, num: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while len(ended(storage)) < num and driver.poll() is None:
        assert time.monotonic() < deadline, f"only {ended(storage)} of {num} trials have ended"
        time.sleep(0.2)


@pytest.mark.mlflow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("num_trials", "kills"), [(8, 1), pytest.param(32, 2, marks=LONG)])
def test_a_study_survives_its_driver_and_a_node(tmp_path: Path, num_trials: int, kills: int) -> None:
    """Killed: the driver, each time after two more trials, then a raylet. Nothing that had ended is done again."""
    ray.shutdown()
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_host": "127.0.0.1"})
    node = raylets.add_node(num_cpus=1)
    raylets.wait_for_nodes()
    written: dict[int, dict[str, int]] = {}
    try:
        for _ in range(kills):
            driver = drive(tmp_path, raylets.address, num_trials)
            wait_for(tmp_path, len(written) + 2, driver)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            written |= {n: files_of(tmp_path, n) for n in ended(tmp_path) - written.keys()}
        last = drive(tmp_path, raylets.address, num_trials)
        wait_for(tmp_path, len(written) + 2, last)
        raylets.remove_node(node, allow_graceful=False)
        raylets.add_node(num_cpus=1)
        assert last.wait(timeout=900) == 0
    finally:
        raylets.shutdown()
    trials = Study.open(str(tmp_path / "runs"), "study").trials()
    assert sorted(trials) == list(range(num_trials + 2))
    assert {n: t.reason for n, t in trials.items() if t.status not in ("finished", "pruned")} == {}
    assert {n: files_of(tmp_path, n) for n in written} == written
    check_again(tmp_path, ranking(trials)[0].number)
    check_tracked(tmp_path, len(trials))


def files_of(storage: Path, number: int) -> dict[str, int]:
    """Times of the checkpoints and scores of a trial."""
    folder = storage / "runs" / "study" / "trials" / f"{number:05d}"
    return {str(p): p.stat().st_mtime_ns for kind in ("checkpoints", SCORES) for p in (folder / kind).rglob("*")}


def check_again(storage: Path, number: int) -> None:
    """The recorded config of a trial, trained once more alone by one rank, has its score to the bit."""
    study = Study.open(str(storage / "runs"), "study")
    config = study.config_of(number)
    folder = RunFolder.open(str(storage / "again"), "again")
    with_two = subprocess.run(
        [sys.executable, "-c", AGAIN.format(tests=str(Path(__file__).parent), storage=str(storage), number=number)]
    )
    assert with_two.returncode == 0
    name = step_name(config.train.num_steps)
    scores = score_snapshot(folder.local / SNAPSHOTS / name, data=config.data, settings=config.eval, extractor=None)
    recorded = read_scores(study.trial_folder(number).local / SCORES / f"{name}.json")
    assert [s.value for s in scores] == [s.value for s in recorded]


AGAIN = """
import sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
from ranks import run_ranks
from test_ray_tune import one_rank
run_ranks(one_rank, 2, {storage!r}, {number})
"""


def one_rank(storage: str, number: int) -> int:
    config = Study.open(f"{storage}/runs", "study").config_of(number)
    config = replace(config, run=Run(name="again", storage=f"{storage}/again"))
    folder = RunFolder.open(config.run.storage, "again")
    return train(config, load_images(config.data, "train"), folder, current(False)).step


def check_tracked(storage: Path, num_trials: int) -> None:
    """Parent and children in MLflow: every trial once, with the way it ended."""
    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("genray/digits").experiment_id
    runs = client.search_runs([experiment], max_results=100)
    parents = [r for r in runs if r.data.tags.get("genray.kind") == "study"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert sorted(int(r.data.tags["genray.trial"]) for r in children) == list(range(num_trials))
    assert {r.data.tags["genray.trial.status"] for r in children} <= {"finished", "pruned"}
    assert all("eval/elbo" in r.data.metrics for r in children)
    assert parents[0].data.metrics["study/trials"] == num_trials
    drawn = {Path(file.path).name for file in client.list_artifacts(parents[0].info.run_id, "study")}
    assert {"index.html", "history.png", "importance.png"} <= drawn


def test_the_plan_starts_nothing(tmp_path: Path) -> None:
    plan = ray_study.plan(settings(tmp_path))
    assert plan["trials"] == 4 and plan["trials_at_once"] == 2 * (psutil.cpu_count() or 1)
    assert not (tmp_path / "runs" / "study").exists()


@pytest.mark.mlflow
def test_a_search_without_anything_to_score_with_is_refused_before_a_trial(one_node: None, tmp_path: Path) -> None:
    made = settings(tmp_path)
    gan = replace(made.config, model=DCGAN(latent_dim=8, width=8), objective=GAN())
    with pytest.raises(RegistryError, match=r"^no trial could be scored: fid compares features"):
        ray_study.run(replace(made, config=gan, space={"optim.lr": LR["optim.lr"]}))
    assert not (tmp_path / "runs" / "study" / "trials").exists()


def test_a_study_whose_mix_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    made = settings(tmp_path)
    made = replace(made, config=replace(made.config, mix=Mix(sources=(str(tmp_path / "fakes"),))))
    with pytest.raises(DataError, match=r"fakes' is none; expected a folder that genray generate has finished"):
        ray_study.run(made)
    assert not list(tmp_path.iterdir())


def test_a_study_that_begins_with_a_name_of_the_registry_is_told_to_pull_it(tmp_path: Path) -> None:
    made = settings(tmp_path)
    made = replace(made, config=replace(made.config, transfer=Transfer(source="digits-classifier@champion")))
    with pytest.raises(ConfigError, match=r"transfer\.source=.* `genray pull digits-classifier@champion --to DIR`"):
        ray_study.run(made)
    assert not list(tmp_path.iterdir())


@pytest.mark.mlflow
def test_a_study_whose_images_have_changed_is_not_resumed(one_node: None, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", [f"{kind}/{i}.png" for kind in "ab" for i in range(20)])
    made = settings(tmp_path, num_trials=1, num_steps=20)
    data = Data(name="folder", root=str(root), image_size=(8, 8), channels=1, cache=str(tmp_path / "cache"))
    made = replace(made, config=replace(made.config, data=data))
    ray_study.run(made)
    paint(99).save(root / "a" / "0.png")
    with pytest.raises(ResumeError, match=r"^the images of study 'study' have changed, .* \(digests of train: "):
        ray_study.run(made)

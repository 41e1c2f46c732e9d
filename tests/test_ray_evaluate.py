"""Scores taken by Ray tasks beside a run: what is killed or deleted under them, and what is left of it."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import tiny_config
from evaluation_snapshots import save_classifier, save_generator
from PIL import Image

from genray import ray_train
from genray.checkpoint import BEST, EXTRACTOR, SCORES, SNAPSHOTS, step_name
from genray.config import Config, Eval
from genray.evaluation.scoring import score_snapshot
from genray.ray_evaluate import Scorer
from genray.storage import RunFolder
from genray.tracking import read_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SLOW, QUICK = 150_000, 64
"""Images of a score that takes seconds, long enough to be killed in, and of one that does not."""


@pytest.fixture(scope="module")
def local_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray_train.connect(1)
        yield
        ray_train.disconnect()


def run_with_snapshots(storage: Path, num_samples: int, steps: tuple[int, ...]) -> tuple[Config, RunFolder]:
    """A run that has left these snapshots, and the extractor that their scores need."""
    settings = Eval(num_samples=num_samples, num_seeds=1, metrics=("kid",))
    base = tiny_config(eval=settings)
    config = replace(base, data=replace(base.data, cache=str(storage / "cache")))
    folder = RunFolder.open(str(storage), config.run.name)
    save_classifier(folder.local / EXTRACTOR)
    for step in steps:
        save_generator(folder.local / SNAPSHOTS / step_name(step), seed=step)
    return config, folder


def journal(folder: RunFolder) -> tuple[dict[int, float], list[tuple[int, str, str]]]:
    """FID by step, and the events, of the scorer's journal."""
    entries = read_journal(folder.local / "journal" / "eval.jsonl")[0]
    scored = [(e["step"], e["metrics"]["eval/fid"]) for e in entries if "metrics" in e]
    assert len(scored) == len(dict(scored)), "a snapshot was scored twice"
    return dict(scored), [(e["step"], e["event"], e["fields"]["cause"]) for e in entries if "event" in e]


def scoring_processes() -> list[psutil.Process]:
    """Those of this test's own Ray that score just now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ray::score_step" in " ".join(process.cmdline()):
                found.append(process)
    return found


def while_scoring(deed: Callable[[psutil.Process], None], times: int = 1) -> threading.Thread:
    """A thread that does `deed` to so many scoring processes, each a moment after it has begun."""

    def look() -> None:
        met: set[int] = set()
        deadline = time.monotonic() + 120
        while len(met) < times and time.monotonic() < deadline:
            for process in scoring_processes():
                if process.pid not in met:
                    time.sleep(0.3)
                    deed(process)
                    met.add(process.pid)
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    return thread


@pytest.mark.parametrize("on_ray", [True, False])
def test_every_snapshot_has_its_pictures_beside_its_scores(local_ray, tmp_path, on_ray):
    config, folder = run_with_snapshots(tmp_path, QUICK, (1, 2))
    scorer = Scorer(config, str(tmp_path), on_ray=on_ray)
    assert scorer.finish() is not None
    entries = read_journal(folder.local / "journal" / "eval.jsonl")[0]
    kinds = ("interpolation", "truncation", "nearest")
    images = {(e["step"], e["image"]): folder.local / "journal" / e["path"] for e in entries if "image" in e}
    assert set(images) == {(step, f"pictures/{kind}") for step in (1, 2) for kind in kinds}
    first, second = (Image.open(images[step, "pictures/interpolation"]).tobytes() for step in (1, 2))
    assert first != second


def test_killed_scoring_process_loses_no_score(local_ray, tmp_path):
    config, folder = run_with_snapshots(tmp_path, SLOW, (1, 2))
    killed: list[int] = []
    killer = while_scoring(lambda p: (os.kill(p.pid, signal.SIGKILL), killed.append(p.pid)))
    scorer = Scorer(config, str(tmp_path), on_ray=True)
    scorer.start()
    best = scorer.finish()
    killer.join()
    assert killed
    scored, events = journal(folder)
    assert (set(scored), events) == ({1, 2}, [])
    assert best is not None and best[0] == step_name(min(scored, key=lambda step: scored[step]))
    directory, extractor = folder.local / SNAPSHOTS / step_name(2), folder.local / EXTRACTOR
    expected = score_snapshot(directory, data=config.data, settings=config.eval, extractor=extractor)
    assert scored[2] == pytest.approx(expected[0].value, rel=1e-6)


def test_snapshot_whose_scoring_is_killed_again_and_again_is_an_event_and_the_others_are_scored(local_ray, tmp_path):
    config, folder = run_with_snapshots(tmp_path, SLOW, (1, 2))
    killed: list[int] = []
    # the newest is first: once, and three retries
    killer = while_scoring(lambda p: (os.kill(p.pid, signal.SIGKILL), killed.append(p.pid)), times=4)
    scorer = Scorer(config, str(tmp_path), on_ray=True)
    scorer.start()
    best = scorer.finish()
    killer.join()
    scored, events = journal(folder)
    assert len(killed) == 4 and set(scored) == {1}
    assert [event[:2] for event in events] == [(2, "not_scored")] and "worker died" in events[0][2].lower()
    assert best is not None and best[0] == step_name(1)


def test_scores_that_a_dead_driver_left_unfinished_are_taken_by_the_next(local_ray, tmp_path):
    config, folder = run_with_snapshots(tmp_path, QUICK, (1, 2, 3))
    first = Scorer(config, str(tmp_path), on_ray=True)
    first._score(step_name(3))  # and then the driver is gone
    first.tracker.close()
    second = Scorer(config, str(tmp_path), on_ray=True)
    second.start()
    assert second.finish() is not None
    assert set(journal(folder)[0]) == {1, 2, 3}


def test_snapshot_deleted_while_it_is_scored_is_scored_and_not_called_best(local_ray, tmp_path):
    config, folder = run_with_snapshots(tmp_path, SLOW, (1,))
    place = folder.local / SNAPSHOTS / step_name(1)

    def delete(_: psutil.Process) -> None:
        while not list(tmp_path.glob("cache/references/reference-*")):  # made when the snapshot has been read
            time.sleep(0.02)
        shutil.rmtree(place)

    deleter = while_scoring(delete)
    scorer = Scorer(config, str(tmp_path), on_ray=True)
    scorer._score(step_name(1))
    deleter.join()
    scored, events = journal(folder)
    assert (set(scored), events) == ({1}, []) and f"{step_name(1)}.json" in folder.names(SCORES)
    assert not (folder.local / BEST).exists()


@pytest.mark.parametrize("on_ray", [True, False])
@pytest.mark.parametrize("left", ["nothing", "no weights"])
def test_snapshot_deleted_before_it_is_read_is_a_clear_event_and_no_crash(local_ray, tmp_path, on_ray, left):
    config, folder = run_with_snapshots(tmp_path, QUICK, (1, 2))
    place = folder.local / SNAPSHOTS / step_name(2)
    scorer = Scorer(config, str(tmp_path), on_ray=on_ray)
    if left == "nothing":
        shutil.rmtree(place)
    else:
        (place / "model.safetensors").unlink()
    scorer._score(step_name(2))
    best = scorer.finish()
    scored, events = journal(folder)
    assert best is not None and best[0] == step_name(1) and set(scored) == {1}
    (event,) = events
    assert event[:2] == (2, "not_scored")
    expected = "the run deleted it first; train.keep says how many stay" if left == "nothing" else "model.safetensors"
    assert expected in event[2]

"""What a fault has cost: a run against its undisturbed twin."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from faults.inject import ray_processes, sleep_until
from faults.job import CHECKPOINT_EVERY, NORM, NUM_STEPS, Job
from mlflow import MlflowClient
from PIL import Image
from torch import Tensor

from genray.checkpoint import CHECKPOINTS, SNAPSHOTS, Checkpoint, load, read
from genray.errors import CheckpointError
from genray.snapshot import load as load_snapshot
from genray.storage import RunFolder
from genray.tracking import read_journal

Points = Counter[tuple[int, str, str]]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The loss by one fault."""

    starts: int
    """Times that the command was given."""
    exit_codes: tuple[int, ...]
    steps_repeated: int
    points_lost: int
    """Points of the twin's journal that are missing, or are other ones."""
    points_doubled: int
    """Points that stand twice in the journal, or in MLflow."""
    mlflow_lost: int | None
    """Points and pictures of the journals that MLflow lacks; None: the run had no MLflow."""
    apart: float | None
    """Largest difference of weights, averages and moments after the last step from those of the twin, as a share of the
    largest in their tensor; 0: equal to the bit; None: they are other tensors, or none."""
    allowed: float
    """What `apart` may be: above 0 where the number of ranks has changed, which sum in another order."""
    damaged: tuple[str, ...]
    """Checkpoints and snapshots of the run that are not whole at its end."""
    left_over: tuple[str, ...]
    """Half-written folders that nobody will ever finish or delete."""
    orphans: tuple[str, ...]
    """Commands of processes that outlived the run."""
    pause_s: float
    """Longest time without a step, from the fault on."""

    @property
    def same_weights(self) -> bool:
        """Whether the run has ended where its twin has."""
        return self.apart is not None and self.apart <= self.allowed

    @property
    def clean(self) -> bool:
        """Whether nothing was lost but time, and no more steps repeated than lie between two checkpoints."""
        bad = (self.points_lost, self.points_doubled, self.mlflow_lost, self.damaged, self.left_over, self.orphans)
        few = self.steps_repeated <= CHECKPOINT_EVERY * (self.starts + 1)
        return not any(bad) and few and self.same_weights and self.exit_codes[-1] == 0


def train_points(folder: RunFolder) -> Points:
    """The points of a run's training journal with their values to the bit; the clock's figures left out."""
    found: Points = Counter()
    for entry in read_journal(folder.pull("journal") / "train.jsonl")[0]:
        for key, value in entry.get("metrics", {}).items():
            if not key.startswith(("perf/", "system/")):
                found[entry["step"], key, value.hex()] += 1
    return found


@cache
def twin(
    place: Path, ranks: int, poison: str | None = None, norm: str = NORM, num_steps: int = NUM_STEPS
) -> tuple[Checkpoint, Points]:
    """The last checkpoint and the journal of the same run, which nothing has happened to."""
    name = f"twin-{ranks}-{poison}-{norm}".replace(":", "-")
    job = Job(str(place / name), ranks, bare=True, poison=poison, norm=norm, train__num_steps=num_steps)
    assert job.start().finish(again=0) == 0, job.tail()
    return load(job.folder, num_steps), train_points(job.folder)


def judge(
    job: Job,
    undisturbed: tuple[Checkpoint, Points],
    uri: str | None = None,
    *,
    but: int | None = None,
    allowed: float = 0.0,
) -> Verdict:
    """What a run that is over has lost against its twin, whose points of step `but` are other ones.

    With an allowed difference only steps and names of the points are compared.
    """
    wanted, points = undisturbed
    found, folder = train_points(job.folder), job.folder
    lost = Counter(_once(points) - _once(found)) if allowed else points - found
    doubled = sum((Counter((step, key) for step, key, _ in found.elements()) - _once(found)).values())
    missing, twice = stored_in_mlflow(folder, uri) if uri else (None, 0)
    return Verdict(
        starts=job.starts,
        exit_codes=tuple(job.exit_codes),
        steps_repeated=steps_repeated(job),
        points_lost=sum(n for (step, *_), n in lost.items() if step != but),
        points_doubled=doubled + twice,
        mlflow_lost=missing,
        apart=distance(load_or_none(folder, job.num_steps), wanted),
        allowed=allowed,
        damaged=not_whole(folder),
        left_over=tuple(sorted(str(p.relative_to(folder.local)) for p in folder.local.glob("*/.step-*"))),
        orphans=outlived(job),
        pause_s=pause(job),
    )


def _once(points: Points) -> Counter[tuple[int, str]]:
    return Counter({(step, key) for step, key, _ in points})


def load_or_none(folder: RunFolder, step: int) -> Checkpoint | None:
    """The checkpoint of a step, if it is there and whole."""
    try:
        return load(folder, step)
    except CheckpointError:
        return None


def distance(found: Checkpoint | None, wanted: Checkpoint) -> float | None:
    """How far the tensors of a checkpoint are from those of `wanted`, see `Verdict.apart`."""
    if found is None or _shapes(found) != _shapes(wanted):
        return None
    return max(_apart(found.tensors[name], value) for name, value in wanted.tensors.items())


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


def _apart(found: Tensor, wanted: Tensor) -> float:
    if torch.equal(found, wanted):
        return 0.0
    scale = wanted.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((found.double() - wanted.double()).abs().max() / scale)


def not_whole(folder: RunFolder) -> tuple[str, ...]:
    """Folders of a run that would be taken for checkpoints or snapshots, and are not."""
    bad = []
    for kind in (CHECKPOINTS, SNAPSHOTS):
        for name in folder.names(kind):
            place: Any = folder.pull(f"{kind}/{name}")
            try:
                tensors = read(place).tensors if kind == CHECKPOINTS else load_snapshot(place).module.state_dict()
                assert all(t.isfinite().all() for t in tensors.values())
            except (CheckpointError, AssertionError):
                bad.append(f"{kind}/{name}")
    return tuple(bad)


def outlived(job: Job, patience: float = 10) -> tuple[str, ...]:
    """Commands of processes of a run, Ray's for it included, that are there `patience` seconds after its end."""

    def left() -> list[psutil.Process]:
        titles = ("ray::RayTrainWorker", "ray::TrainController", "ray::Trial", "ray::Rank")
        return [*job.orphans(), *(process for title in titles for process in ray_processes(title))]

    sleep_until(lambda: not left(), patience)
    return tuple(" ".join(p.cmdline())[:80] for p in left())


def steps_repeated(job: Job) -> int:
    """Steps done more than once, by what the processes of a run have printed and what its journal had at the fault."""
    repeated, reached, pid = 0, 0, job.steps[0].pid if job.steps else 0
    for step in job.steps:
        if step.pid != pid:
            reached = max(reached, job.done_at_fault)
            repeated += max(0, reached - step.step + 1)
        pid, reached = step.pid, step.step
    return repeated


def pause(job: Job) -> float:
    """Seconds."""
    times = [step.at for step in job.steps]
    return max((later - at for at, later in pairwise(times) if later > job.fault_at), default=0.0)


def stored_in_mlflow(folder: RunFolder, uri: str) -> tuple[int, int]:
    """Points and pictures of the journals that MLflow lacks, and that it has twice."""
    run_id = json.loads(folder.pull("mlflow.json").read_text())["run_id"]
    journal, pictures = folder.pull("journal"), Counter[bytes]()
    wanted: Counter[tuple[str, int, float]] = Counter()
    for path in journal.glob("*.jsonl"):
        for entry in read_journal(path)[0]:
            wanted.update((key, entry["step"], value) for key, value in entry.get("metrics", {}).items())
            if "image" in entry:
                pictures[_pixels(journal / entry["path"])] += 1
    client, found = MlflowClient(uri), Counter[tuple[str, int, float]]()
    for key in {key for key, _, _ in wanted}:
        found.update((key, point.step, point.value) for point in client.get_metric_history(run_id, key))
    shown = _pictures_in_mlflow(client, run_id) if pictures else Counter()
    return (wanted - found).total() + (pictures - shown).total(), (found - wanted).total() + (shown - pictures).total()


def _pictures_in_mlflow(client: MlflowClient, run_id: str) -> Counter[bytes]:
    with TemporaryDirectory() as place:
        return Counter(_pixels(path) for path in Path(client.download_artifacts(run_id, "images", place)).glob("*.png"))


def _pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()

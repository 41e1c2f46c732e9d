"""The short form: faults that no other test injects. `make faults` injects all, and writes docs/faults.md."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.cases import FAULTS
from faults.job import NUM_STEPS, Job, Step
from faults.judge import judge, pause, steps_repeated, twin
from faults.lab import Lab
from faults.page import LOG, PAGE, SOAK_LOG, page
from safetensors.torch import load_file, save_file

from genray.checkpoint import TENSORS, step_name

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHORT = (
    "the disk is full at a checkpoint",
    "the checkpoints' folder is read-only",
    "object storage is away",
    "MLflow is away when a run goes on",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with Lab(tmp_path_factory.mktemp("faults")) as made:
            yield made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SHORT)
def test_fault_costs_nothing_but_time(lab: Lab, name: str) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == name]
    try:
        verdict = fault.run(lab)
    except PermissionError as error:
        pytest.skip(f"this user may not inject it: {error}")
    assert verdict.clean, verdict


def drop_a_line(run: Path) -> None:
    journal = run / "journal" / "train.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))


def double_a_line(run: Path) -> None:
    journal = run / "journal" / "train.jsonl"
    journal.write_text(journal.read_text() + journal.read_text().splitlines(keepends=True)[-1])


def move_a_weight(run: Path) -> None:
    path = run / "checkpoints" / step_name(NUM_STEPS) / TENSORS
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("modules/"))
    save_file(tensors | {name: tensors[name] + 1e-7}, path)


def leave_a_half(run: Path) -> None:
    (run / "checkpoints" / ".step-000000999.0.tmp").mkdir()


@pytest.mark.parametrize(
    ("harm", "field"),
    [
        (drop_a_line, "points_lost"),
        (double_a_line, "points_doubled"),
        (move_a_weight, "damaged"),
        (leave_a_half, "left_over"),
    ],
)
def test_judge_sees_a_loss(lab: Lab, tmp_path: Path, harm: Callable[[Path], None], field: str) -> None:
    undisturbed = twin(lab.place / "twins", 1)
    shutil.copytree(lab.place / "twins" / "twin-1-None-batch" / "digits", tmp_path / "digits")
    job = Job(str(tmp_path), bare=True)
    job.exit_codes = [0]
    assert judge(job, undisturbed).clean
    harm(tmp_path / "digits")
    verdict = judge(job, undisturbed)
    assert not verdict.clean and getattr(verdict, field)


def test_page_is_the_one_of_its_logs() -> None:
    log = json.loads(LOG.read_text())
    soak = json.loads(SOAK_LOG.read_text()) if SOAK_LOG.is_file() else {}
    assert PAGE.read_text() == page(log, soak)
    assert {entry["name"] for entry in log["faults"]} <= {fault.name for fault in FAULTS}


def run_of(*steps: tuple[float, int, int]) -> Job:
    """A run that has printed steps: (second, step, process)."""
    job = Job("/nowhere", bare=True)
    job.steps = [Step(*step) for step in steps]
    job.fault_at, job.done_at_fault = 2.5, 4
    return job


def test_steps_are_counted_as_repeated_from_the_newest_that_the_journal_had() -> None:
    assert steps_repeated(run_of((1, 1, 7), (2, 2, 7), (9, 2, 8), (10, 3, 8), (11, 4, 8), (12, 5, 8))) == 3
    assert steps_repeated(run_of((1, 1, 7), (2, 2, 7), (3, 3, 7), (4, 4, 7))) == 0


def test_pause_is_the_longest_time_without_a_step_since_the_fault() -> None:
    assert pause(run_of((0, 0, 7), (2, 1, 7), (3, 2, 7), (4.5, 3, 8))) == 1.5

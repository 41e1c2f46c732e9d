"""The champion is beaten, never overwritten."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
import evaluation_snapshots as snapshots
from mlflow import MlflowClient
from mlflow_server import new_store

from genray import mlflow_promotion
from genray.errors import ProtocolError, RegistryError
from genray.evaluation.protocol import Protocol, Score
from genray.manifest import sha256
from genray.mlflow_promotion import champion_protocol, promote
from genray.mlflow_registry import register, resolve
from genray.mlflow_tracking import start_run

pytestmark = pytest.mark.mlflow
TASK = "digits-generator"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_store(tmp_path_factory.mktemp("store")) as address:
        yield address


@pytest.fixture
def uri(base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A registry in which the task has no versions."""
    monkeypatch.setattr(mlflow_promotion, "LOCKS", tmp_path / "locks")
    client = MlflowClient(base)
    if [model for model in client.search_registered_models() if model.name == TASK]:
        client.delete_registered_model(TASK)
    return base


class Scorer:
    """FIDs by snapshot, and how often each was taken."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self.run_id = start_run(uri, experiment="genray/promotion", name="r", params={}, config={}, tags={})
        self.values: dict[str, tuple[float, float]] = {}
        self.taken: list[float] = []
        self.before: Callable[[], None] = lambda: None
        self.num_samples = 10

    def add(self, value: float, spread: float = 0.5) -> int:
        """Registers a new snapshot with this score; returns its version."""
        seed = len(self.values)
        directory = snapshots.save_generator(self.folder / str(seed), seed=seed)
        self.values[sha256(directory / "manifest.json")] = (value, spread)
        return register(self.uri, directory, run_id=self.run_id, task=TASK, tags={})

    def __call__(self, directory: Path) -> Score:
        value, spread = self.values[sha256(directory / "manifest.json")]
        self.taken.append(value)
        self.before()
        protocol = Protocol(
            metric="fid", data="digits", split="test", data_digest="0", num_samples=self.num_samples, num_seeds=3
        )
        return Score("fid", value, spread, protocol)


@pytest.fixture
def scorer(uri: str, tmp_path: Path) -> Scorer:
    return Scorer(uri, tmp_path / "snapshots")


def aliases(uri: str) -> dict[str, int]:
    return {alias: int(number) for alias, number in MlflowClient(uri).get_registered_model(TASK).aliases.items()}


def test_first_model_with_a_finite_score_becomes_champion(uri: str, scorer: Scorer) -> None:
    first = scorer.add(30)
    decision = promote(uri, TASK, score=scorer)
    assert decision.promoted and decision.champion_version is None
    assert decision.reason == f"{TASK}/{first} is the first champion: fid 30 ± 0.5"
    assert aliases(uri) == {"candidate": first, "champion": first}


@pytest.mark.parametrize(("value", "spread"), [(math.nan, 0.5), (math.inf, 0.5), (30, math.nan)])
def test_first_model_without_a_finite_score_does_not(uri: str, scorer: Scorer, value: float, spread: float) -> None:
    scorer.add(value, spread)
    decision = promote(uri, TASK, score=scorer)
    assert not decision.promoted and "no finite score" in decision.reason and "champion" not in aliases(uri)


def test_better_candidate_wins_and_the_old_champion_is_kept_as_previous(uri: str, scorer: Scorer) -> None:
    first = scorer.add(30)
    promote(uri, TASK, score=scorer)
    second = scorer.add(20)
    decision = promote(uri, f"{TASK}/{second}", score=scorer)
    assert decision.promoted and decision.champion_version == first
    assert decision.reason == f"{TASK}/2 beats the champion {TASK}/1: fid 20 ± 0.5 against fid 30 ± 0.5"
    assert aliases(uri) == {"candidate": second, "champion": second, "previous": first}
    assert scorer.taken == [30, 20, 30]  # the champion was scored again, not believed


@pytest.mark.parametrize("value", [30, 29.6, 31, math.nan])
def test_candidate_that_is_not_better_by_more_than_the_spread_does_not_win(
    uri: str, scorer: Scorer, value: float
) -> None:
    first = scorer.add(30)
    promote(uri, TASK, score=scorer)
    second = scorer.add(value)
    decision = promote(uri, TASK, score=scorer)
    assert not decision.promoted and "does not beat" in decision.reason
    assert aliases(uri) == {"candidate": second, "champion": first}


def test_champion_does_not_compete_with_itself(uri: str, scorer: Scorer) -> None:
    scorer.add(30)
    promote(uri, TASK, score=scorer)
    decision = promote(uri, TASK, score=scorer)
    assert not decision.promoted and decision.reason == f"{TASK}/1 is the champion already"


def test_decision_is_on_record_with_scores_and_protocol(uri: str, scorer: Scorer) -> None:
    scorer.add(30)
    promote(uri, TASK, score=scorer)
    scorer.add(20)
    decision = promote(uri, TASK, score=scorer)
    version = resolve(uri, f"{TASK}/2")
    assert version.tags["genray.score.fid"] == "20" and version.tags["genray.score.fid.spread"] == "0.5"
    protocol = decision.scores["candidate"].protocol
    assert version.tags["genray.protocol_sha256"] == protocol.digest and champion_protocol(uri, TASK) == protocol
    assert version.tags["genray.decision"] == decision.reason
    path = MlflowClient(uri).download_artifacts(scorer.run_id, f"decisions/{TASK}-2-against-1.json")
    assert json.loads(Path(path).read_text()) == decision.to_dict()


def test_candidate_scored_under_another_protocol_is_refused(uri: str, scorer: Scorer) -> None:
    scorer.add(30)
    promote(uri, TASK, score=scorer)
    scorer.add(20)
    scorer.num_samples = 99
    with pytest.raises(ProtocolError, match=rf"{TASK}/1 was scored under another protocol \(num_samples: 10 != 99\)"):
        promote(uri, TASK, score=scorer)
    assert aliases(uri)["champion"] == 1


def test_damaged_candidate_is_never_scored(uri: str, scorer: Scorer) -> None:
    scorer.add(30)
    MlflowClient(uri).set_model_version_tag(TASK, "1", "genray.manifest_sha256", "f" * 64)
    with pytest.raises(RegistryError, match="was changed after it was registered"):
        promote(uri, TASK, score=scorer)
    assert scorer.taken == [] and "champion" not in aliases(uri)


def test_champion_that_appears_meanwhile_is_compared_with_too(uri: str, scorer: Scorer) -> None:
    scorer.add(30)
    promote(uri, TASK, score=scorer)
    best, good = scorer.add(10), scorer.add(20)
    client = MlflowClient(uri)

    def overtake() -> None:
        if scorer.taken[-1] == 30:  # the old champion was just scored, the alias not yet written
            client.set_registered_model_alias(TASK, "champion", str(best))

    scorer.before = overtake
    decision = promote(uri, f"{TASK}/{good}", score=scorer)
    assert not decision.promoted and decision.champion_version == best
    assert aliases(uri)["champion"] == best and scorer.taken == [30, 20, 30, 10]


def test_champion_written_over_by_another_host_is_compared_with_too(
    uri: str, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.add(30)
    promote(uri, TASK, score=scorer)
    worse, best = scorer.add(20), scorer.add(10)
    write, written = MlflowClient.set_registered_model_alias, []

    def overtaken(self: MlflowClient, name: str, alias: str, version: str) -> None:
        write(self, name, alias, version)
        if alias == "champion" and not written:
            written.append(version)
            write(self, name, alias, str(worse))  # a host that compared with version 1, like we did

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", overtaken)
    decision = promote(uri, f"{TASK}/{best}", score=scorer)
    assert decision.promoted and decision.champion_version == worse
    assert aliases(uri) == {"candidate": best, "champion": best, "previous": worse}


@pytest.mark.slow
def test_promotions_at_once_leave_the_best(uri: str, scorer: Scorer) -> None:
    scorer.add(30)
    promote(uri, TASK, score=scorer)
    numbers = {scorer.add(value): value for value in (18, 10, 14, 22)}
    barrier = threading.Barrier(len(numbers))
    failed: list[BaseException] = []

    def compete(number: int) -> None:
        try:
            barrier.wait()
            promote(uri, f"{TASK}/{number}", score=scorer)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=compete, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and numbers[aliases(uri)["champion"]] == 10


def test_lock_keeps_a_second_process_out(uri: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from genray import mlflow_promotion as p; "
        f"p.LOCKS = Path({str(tmp_path / 'locks')!r}); print('up', flush=True)\n"
        f"with p._promotion_lock({uri!r}, {TASK!r}): print('inside', flush=True)"
    )
    with mlflow_promotion._promotion_lock(uri, TASK):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
    assert process.communicate()[0] == "inside\n"

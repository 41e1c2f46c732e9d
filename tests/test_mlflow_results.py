"""`genray results`: what registered models have scored, from MLflow alone."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
from mlflow import MlflowClient
from mlflow_server import new_store

from genray import cli
from genray.config import Config, differences
from genray.errors import RegistryError
from genray.mlflow_results import COLUMNS, markdown, results

pytestmark = pytest.mark.mlflow

COMMIT = "0123456789abcdef0123456789abcdef01234567"

TRAIN = [
    "--cluster.num-workers",
    "0",
    "--train.num-steps",
    "20",
    "--train.checkpoint-every",
    "10",
    "--model.width",
    "4",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A registry with two versions of a classifier: one evaluated once more, one that did not compete; its folder."""
    place = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch, new_store(place) as uri:
        patch.chdir(place)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("GENRAY_GIT_COMMIT", COMMIT)
        for name, more in (("first", []), ("second", ["--train.seed", "3", "--eval.promote", "False"])):
            assert cli.main(["train", "digits-classifier", "--run.name", name, *TRAIN, *more]) == 0
        assert cli.main(["evaluate", "digits-classifier/1", "--split", "train"]) == 0
        yield uri, place


def test_a_version_has_the_scores_of_its_own_run_and_what_it_ran_on(store: tuple[str, Path]) -> None:
    uri, place = store
    (second,) = [one for one in results(uri, ["digits-classifier"]) if one.model == "digits-classifier/2"]
    (best,) = [json.loads((place / "runs" / "second" / "best.json").read_text())]
    assert second.scores["accuracy"][0] == best["value"]
    assert second.protocol["split"] == "test" and second.protocol["num_samples"] == 359
    assert "1 of" in second.hardware and second.seconds > 0


def test_a_later_evaluation_takes_the_place_of_the_scores_of_a_run(store: tuple[str, Path]) -> None:
    first = results(store[0])[0]
    assert first.model == "digits-classifier/1"
    assert first.protocol["split"] == "train" and first.protocol["num_samples"] == "1438"


def test_command_of_a_version_describes_the_run_that_made_it(store: tuple[str, Path]) -> None:
    uri, place = store
    for one, name in zip(results(uri), ("first", "second"), strict=True):
        again, _ = cli.parse_run(shlex.split(one.command)[2:], "genray train")
        made = Config.from_dict(json.loads((place / "runs" / name / "config.json").read_text()))
        assert differences(made, again) == [f"run.name: {name!r} -> 'digits-classifier'"]


def test_row_names_the_commit_of_the_code_that_trained(store: tuple[str, Path]) -> None:
    first, _ = results(store[0])
    assert first.commit == COMMIT[:7]
    assert f"` at {COMMIT[:7]} |" in markdown([first])
    client = MlflowClient(store[0])
    client.set_tag(client.get_model_version("digits-classifier", "2").run_id, "mlflow.source.git.dirty", "true")
    assert results(store[0])[1].commit == COMMIT[:7] + "+"


def test_table_has_a_row_a_version_and_is_printed(store: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", "--uri", store[0]]) == 0
    said = capsys.readouterr().out
    assert said == markdown(results(store[0]))
    assert [line.count(" | ") for line in said.splitlines()] == [len(COLUMNS) - 1] * 4


def test_row_of_a_likelihood_says_how_many_samples_it_took(store: tuple[str, Path]) -> None:
    command = ["train", "digits-vae", "--run.name", "vae", *TRAIN, "--eval.metrics", "nll"]
    more = ["--eval.importance-samples", "3", "--eval.num-samples", "50", "--eval.num-seeds", "1"]
    assert cli.main([*command, *more]) == 0
    (row,) = markdown(results(store[0], ["digits-generator"])).splitlines()[2:]
    assert "nll " in row and ", 1 seed, test split, nll by 3 importance samples" in row


def test_model_that_is_not_registered_is_named_with_those_that_are(store: tuple[str, Path]) -> None:
    with pytest.raises(RegistryError, match=r"digits-classifer.*digits-classifier"):
        results(store[0], ["digits-classifer"])

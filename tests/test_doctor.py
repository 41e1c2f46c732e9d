"""`genray doctor`, and the README's commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster as Raylets

from genray import cli
from genray.presets import PRESETS, expectation, preset

README = (Path(__file__).parents[1] / "README.md").read_text()


def diagnosis(capsys) -> dict[str, list[str]]:
    return {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.mlflow
def test_doctor_finds_a_healthy_machine_healthy(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["doctor", "--uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]) == 0
    found = diagnosis(capsys)
    assert [name for name, (verdict, _) in found.items() if verdict != "OK"] == []
    assert "digits" in found["data"][1]


@pytest.mark.mlflow
def test_doctor_says_what_to_do_about_a_tracking_server_that_is_away(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["doctor", "--uri", "http://127.0.0.1:9"]) == 1
    verdict, text = diagnosis(capsys)["mlflow"]
    assert verdict == "FAIL"
    assert "does not answer" in text and "mlflow server" in text


@pytest.mark.mlflow
def test_doctor_says_what_to_do_about_a_cluster_that_is_away(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert cli.main(["doctor", "--uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]) == 1
    verdict, text = diagnosis(capsys)["ray"]
    assert verdict == "FAIL"
    assert "RAY_ADDRESS='127.0.0.1:9' does not answer" in text and "RAY_AUTH_TOKEN" in text


def test_readme_names_only_commands_that_exist():
    named = set(re.findall(r"^genray ([a-z]+)", README, flags=re.MULTILINE))
    assert named and named <= set(cli.COMMANDS)


def test_readme_names_only_presets_that_exist():
    named = set(re.findall(r"(?:train\.py|search\.py|genray train|genray search) ([a-z0-9-]+)", README))
    assert named and named <= PRESETS.keys()


def test_readme_map_names_only_files_that_exist():
    root = Path(__file__).parents[1]
    block = README.split("```text")[1].split("```")[0]
    for name in re.findall(r"[├└]── (\S+(?: \S+\.py)?)", block):
        for part in name.split():
            if part.endswith(".py"):
                assert list((root / "genray").glob(part)), part
    assert (root / "clusters").is_dir() and (root / "jobs" / "demo.py").is_file()


def test_readme_says_of_every_preset_what_the_preset_says():
    for name in PRESETS:
        expect = expectation(name)
        row = f"| `{name}` | {preset(name).data.name} | {expect.hardware} | {expect.time} | {expect.score} |"
        assert row in README


LEAK = """
import ray
from ray.util.placement_group import placement_group
ray.init()
ray.get(placement_group([{"CPU": 1}], lifetime="detached").ready())
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.mlflow
@pytest.mark.filterwarnings("ignore")
def test_doctor_frees_what_an_ended_job_holds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", raylets.address)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    try:
        subprocess.run([sys.executable, "-c", LEAK], check=True)
        assert cli.main(["doctor", "--uri", uri]) == 1
        verdict, text = diagnosis(capsys)["leaks"]
        assert verdict == "FAIL" and text.startswith("1 placement groups of ended jobs hold resources")
        assert cli.main(["doctor", "--fix", "--uri", uri]) == 0
        assert diagnosis(capsys)["leaks"] == ["OK", "1 placement groups of ended jobs were freed"]
        assert cli.main(["doctor", "--uri", uri]) == 0
    finally:
        raylets.shutdown()

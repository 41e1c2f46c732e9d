"""The command line: what it refuses, and what it prints."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config
from PIL import Image

from genray import cli, snapshot
from genray.presets import PRESETS


@pytest.fixture
def tiny_snapshot(tmp_path):
    """A snapshot of an untrained conditional generator of digits."""
    base = tiny_config()
    config = replace(base, model=replace(base.model, conditional=True))
    torch.manual_seed(0)
    module = config.model.build((1, 8, 8), 10)["generator"]
    classes = tuple("0123456789")
    snapshot.save(tmp_path / "tiny", module, config, step=1, samples_seen=16, classes=classes, data_digest="0" * 64)
    return tmp_path / "tiny"


def refused(capsys, *args: str) -> str:
    assert cli.main(args) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_unknown_field_names_the_nearest(capsys):
    message = refused(capsys, "train", "digits-dcgan", "--train.num-step", "3")
    assert message.startswith("error: unknown field 'train.num-step'; choose from ")
    assert message.endswith("(did you mean 'train.num-steps'?)")


def test_unknown_preset_names_the_nearest(capsys):
    assert refused(capsys, "train", "digits-dcgann").endswith("(did you mean 'digits-dcgan'?)")


def test_unknown_command_names_the_nearest(capsys):
    assert refused(capsys, "tran").endswith("(did you mean 'train'?)")


def test_value_that_the_config_refuses_is_one_line(capsys):
    message = refused(capsys, "train", "digits-dcgan", "--train.num-steps", "0")
    assert message == "error: train.num_steps=0 must be at least 1"


def test_presets_lists_every_preset(capsys):
    assert cli.main(["presets"]) == 0
    out = capsys.readouterr().out
    assert [name for name in PRESETS if name not in out] == []


def test_help_of_a_preset_tells_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "digits-dcgan", "--help"])
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--train.ema-half-life FLOAT" in out
    assert "Images after which a weight's share in the EMA has halved; 0: no averaging. (default: 5000" in out


def test_flags_take_underscores_and_hyphens_alike():
    with_hyphens, _ = cli.parse_run(["digits-dcgan", "--train.num-steps", "7"], "x")
    with_underscores, _ = cli.parse_run(["digits-dcgan", "--train.num_steps", "7"], "x")
    assert with_hyphens == with_underscores
    assert with_hyphens.train.num_steps == 7


def test_dry_run_prints_config_parameters_memory_and_resources(capsys, tmp_path):
    args = ["train", "digits-dcgan", "--cluster.num-workers", "2", "--run.storage", str(tmp_path / "none"), "--dry-run"]
    assert cli.main(args) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["run"]["name"] == "digits-dcgan"
    assert set(plan["parameters"]) == {"generator", "discriminator"}
    assert plan["memory_mb_per_worker"]["total"] > 0
    assert plan["resources"] == {"workers": 2, "CPU": 2, "GPU": 0, "scoring": {"CPU": 1, "GPU": 0}}
    assert not (tmp_path / "none").exists()


def test_sample_writes_the_same_picture_for_the_same_seed(tiny_snapshot, tmp_path):
    def draw(seed: int, name: str) -> bytes:
        out = tmp_path / name
        assert cli.main(["sample", str(tiny_snapshot), "--num", "16", "--seed", str(seed), "--out", str(out)]) == 0
        return Image.open(out).tobytes()

    assert draw(0, "a.png") == draw(0, "b.png")
    assert draw(0, "a.png") != draw(1, "c.png")


def test_sample_of_a_label_out_of_range_is_refused(capsys, tiny_snapshot, tmp_path):
    message = refused(capsys, "sample", str(tiny_snapshot), "--label", "10", "--out", str(tmp_path / "x.png"))
    assert message.startswith("error: label=10 must lie between 0 and 9")


def test_snapshot_with_one_flipped_byte_is_refused(capsys, tiny_snapshot, tmp_path):
    path = tiny_snapshot / snapshot.WEIGHTS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = refused(capsys, "sample", str(tiny_snapshot), "--out", str(tmp_path / "x.png"))
    assert message.startswith(f"error: {path} is damaged: its SHA-256 is ")


def test_snapshot_with_a_foreign_file_is_refused(capsys, tiny_snapshot, tmp_path):
    (tiny_snapshot / "weights.pkl").write_bytes(b"\x80\x04.")
    message = refused(capsys, "sample", str(tiny_snapshot), "--out", str(tmp_path / "x.png"))
    assert message == (
        f"error: {tiny_snapshot / 'weights.pkl'} does not belong there; "
        "expected only config.json, manifest.json, model.safetensors"
    )

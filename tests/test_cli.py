"""The command line: what it refuses, and what it prints."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config
from made_studies import journal, keep_config, population, raced, report, started
from PIL import Image

import genray
from genray import cli, cli_study, snapshot
from genray.presets import PRESETS


@pytest.fixture
def tiny_snapshot(tmp_path):
    """A snapshot of an untrained conditional generator of digits."""
    base = tiny_config()
    config = replace(base, model=replace(base.model, conditional=True))
    torch.manual_seed(0)
    module = config.model.build((1, 8, 8), 10)["generator"]
    classes = tuple("0123456789")
    snapshot.save(
        tmp_path / "tiny", module.state_dict(), config, step=1, samples_seen=16, classes=classes, data_digest="0" * 64
    )
    return tmp_path / "tiny"


def refused(capsys, *args: str) -> str:
    assert cli.main(args) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_output_that_nobody_reads_on_ends_quietly():
    words = [sys.executable, "-m", "genray", "train", "digits-dcgan", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.close()
        assert command.stderr.read() == b"" and command.wait() == 1


def test_connection_that_breaks_is_not_taken_for_output_that_nobody_reads(capfd):
    def broken() -> int:
        raise BrokenPipeError("a peer has gone")

    with capfd.disabled(), pytest.raises(BrokenPipeError, match="a peer has gone"):
        cli.guarded(broken)


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


@pytest.fixture
def study(tmp_path):
    """A made-up study `made` of digits-dcgan in `tmp_path`, whose trial 7 has left its config."""
    made = raced(tmp_path, 12)
    keep_config(made, 7, made.trials()[7].values)
    return made


def words(capsys) -> str:
    """What was printed, without the lines of tables, in one line."""
    return " ".join("".join(" " if c in "│┃━─┏┓┡┩┗┛└┘┳╇┴\n" else c for c in capsys.readouterr().out).split())


def test_study_tells_trials_best_running_and_hours(capsys, study, tmp_path):
    assert cli.main(["study", "made", "--storage", str(tmp_path)]) == 0
    out = words(capsys)
    assert "12 of 12 trials begun: 1 running, 8 finished, 1 pruned, 1 stopped, 1 failed" in out
    assert "trial 11 runs: step 750 of 1500" in out
    assert "best so far: trial 8, fid 2.013 at step 1500" in out
    assert "1.84 hours used, about 0.28 saved by ending trials early" in out
    assert "field preset trial 8" in out
    assert "optim.lr 0.001 0.001441" in out
    assert "ConfigError: <b>broke</b> & [bold]fell[/bold]" in out


def test_study_tells_how_much_of_the_lead_was_luck(capsys, study, tmp_path):
    for number, of, scores in ((12, 8, (2.1, 2.2)), (14, 10, (2.5, 2.6))):
        for seed, score in enumerate(scores):
            journal(study, started(9, number + seed, {"train.seed": seed}, of=of))
            journal(study, report(10, number + seed, 1500, score), (10, number + seed, "finished", {}))
    assert cli.main(["study", "made", "--storage", str(tmp_path)]) == 0
    out = words(capsys)
    assert "8 2.013 2.15 0.07071 2.1 2.2 12" in out
    assert "trial 8 led trial 10 by 0.2278 in the race and by 0.4 over seeds, above the spread of 0.07071: " in out


def test_study_draws_its_plots(capsys, study, tmp_path):
    plots = tmp_path / "plots"
    assert cli.main(["study", "made", "--storage", str(tmp_path), "--plots", str(plots)]) == 0
    names = {"history.png", "curves.png", "importance.png", "parallel.png", "index.html"}
    assert {path.name for path in plots.iterdir()} == names
    assert capsys.readouterr().out.splitlines()[-1] == str(plots / "index.html")


def test_unknown_study_is_one_line(capsys, tmp_path):
    message = refused(capsys, "study", "made", "--storage", str(tmp_path))
    assert message == (
        f"error: there is no study 'made' in {str(tmp_path)!r}; give --storage as run.storage of its search"
    )
    assert list(tmp_path.iterdir()) == []


def test_study_is_resumed_by_the_one_that_runs_it(monkeypatch, study, tmp_path):
    resumed = []
    stub = SimpleNamespace(resume=lambda found: resumed.append(found.settings) or 3)
    monkeypatch.setitem(sys.modules, "genray.ray_study", stub)
    monkeypatch.setattr(genray, "ray_study", stub, raising=False)
    assert cli.main(["study", "made", "--storage", str(tmp_path), "--resume"]) == 3
    assert resumed == [study.settings]


def test_trial_again_has_the_recorded_config_under_a_name_of_its_own(study, tmp_path):
    recorded = study.config_of(7)
    config, dry_run = cli_study.parse_again(["digits-dcgan", "--from-trial", "made/7", "--storage", str(tmp_path)], "x")
    assert (config.run.name, config.run.storage, dry_run) == ("made-00007-again", str(tmp_path), False)
    assert replace(config, run=recorded.run) == recorded
    named, dry_run = cli_study.parse_again(
        ["digits-dcgan", f"--storage={tmp_path}", "--from_trial=made/00007", "--run.name", "mine", "--dry-run"], "x"
    )
    assert (named.run.name, dry_run) == ("mine", True)


def test_dry_run_of_a_trial_again_prints_its_config(capsys, study, tmp_path):
    args = ["train", "digits-dcgan", "--from-trial", "made/7", "--storage", str(tmp_path), "--dry-run"]
    assert cli.main(args) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["optim"]["lr"] == study.trials()[7].values["optim.lr"]
    assert plan["config"]["run"]["name"] == "made-00007-again"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("digits-dcgan", "--from-trial", "made/7", "--train.num_steps", "7"),
            "--train.num-steps cannot be given with --from-trial, which takes the trial's config as it is; "
            "leave one of them out",
        ),
        (
            ("digits-dcgan", "--from-trial", "made"),
            "--from-trial 'made' is not of the form STUDY/TRIAL, e.g. digits-dcgan-study/7",
        ),
        (
            ("digits-dcgan", "--from-trial", "made/best"),
            "--from-trial 'made/best' is not of the form STUDY/TRIAL, e.g. digits-dcgan-study/7",
        ),
        (
            ("digits-dcgan", "--from-trial", "made/99"),
            "study 'made' has no trial 99; it has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
        ),
        (
            ("mnist-dcgan", "--from-trial", "made/7"),
            "trial 'made/7' is of 'digits-dcgan' (data.name='digits'), not of preset 'mnist-dcgan'; use digits-dcgan",
        ),
        (
            ("digits-vae", "--from-trial", "made/7"),
            "trial 'made/7' is of 'digits-dcgan' (model.name='dcgan'), not of preset 'digits-vae'; use digits-dcgan",
        ),
    ],
)
def test_trial_again_that_cannot_be_is_refused(capsys, study, tmp_path, args, message):
    storage = () if "--train.num_steps" in args else ("--storage", str(tmp_path))
    assert refused(capsys, "train", *args, *storage) == f"error: {message}"


def test_trial_again_of_a_study_under_another_run_name_needs_only_the_kind_to_fit(capsys, tmp_path):
    made = raced(tmp_path, 2)
    path = made.folder.local / "study.json"
    path.write_text(path.read_text().replace('"name": "digits-dcgan"', '"name": "mine"'))
    keep_config(made, 0, made.trials()[0].values)
    storage = ["--storage", str(tmp_path)]
    config, _ = cli_study.parse_again(["digits-dcgan", "--from-trial", "made/0", *storage], "x")
    assert config.run.name == "made-00000-again"
    assert refused(capsys, "train", "mnist-dcgan", "--from-trial", "made/0", *storage) == (
        "error: trial 'made/0' is of 'mine' (data.name='digits'), not of preset 'mnist-dcgan'"
    )


def test_trial_again_that_took_over_weights_says_that_it_ends_elsewhere(capsys, tmp_path):
    members = population(tmp_path)
    keep_config(members, 3, members.trials()[3].values)
    cli_study.parse_again(["digits-dcgan", "--from-trial", "made/3", "--storage", str(tmp_path)], "x")
    assert capsys.readouterr().err == (
        "trial 3 took over weights of others; alone, with its last values, it ends elsewhere\n"
    )

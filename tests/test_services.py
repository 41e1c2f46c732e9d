"""`make services`, and a run whose records are in PostgreSQL and whose models are in S3, behind sign-ins."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import psutil
import pytest
import services
from botocore.exceptions import ClientError
from conftest import tiny_config
from mlflow import MlflowClient
from pg8000 import native
from pg8000.exceptions import DatabaseError

from genray import cli, ray_job, snapshot
from genray.config import Cluster, Eval, Run, Train
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.paths import resolved

INSTALLED = bool(list(services.DEBIAN.glob("*/bin/initdb")) or shutil.which("initdb"))
pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="needs PostgreSQL: apt-get install postgresql"),
]


@pytest.fixture(scope="module")
def running():
    """The command's process, the folder of the services, and what is to be exported."""
    process = subprocess.Popen([sys.executable, services.__file__], stdout=subprocess.PIPE, stderr=2, text=True)
    try:
        said = ""
        while "Ctrl-C" not in said and (line := process.stdout.readline()):
            said += line
        path = Path(re.search(r"set -a; \. (\S+);", said)[1])
        yield process, path.parent, dict(line.split("=", 1) for line in path.read_text().splitlines())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def exported(running, monkeypatch):
    for name, value in running[2].items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def trained(running, tmp_path_factory):
    """A VAE of the digits with its checkpoints in S3, tracked and registered."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running[2].items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        config = tiny_config(
            run=Run(name="served", storage="s3://genray/runs"),
            model=MLPVAE(latent_dim=2, hidden=8),
            objective=ELBO(),
            train=Train(num_steps=4, global_batch_size=16, checkpoint_every=2, log_every=1, sample_every=4),
            eval=Eval(num_samples=16, num_seeds=2),
            cluster=Cluster(num_workers=0),
        )
        return ray_job.run(resolved(config))


def test_champion_comes_back_from_the_store_that_it_was_trained_into(trained, exported, tmp_path):
    assert trained.outcome.step == 4
    assert cli.main(["pull", "digits-generator@champion", "--to", str(tmp_path / "model")]) == 0
    assert snapshot.load(tmp_path / "model").step == 4
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("genray/digits").experiment_id])
    assert run.info.status == "FINISHED" and run.info.artifact_uri.startswith("mlflow-artifacts:/")
    points = client.get_metric_history(run.info.run_id, "vae/loss")
    assert [point.step for point in points] == [1, 2, 3, 4]


def test_models_and_checkpoints_are_in_the_object_store(trained, exported, running):
    own = running[2]
    store = boto3.client("s3")
    held = {b: [o["Key"] for o in store.list_objects_v2(Bucket=b)["Contents"]] for b in ("mlflow", "genray")}
    assert any(key.endswith("artifacts/model.safetensors") for key in held["mlflow"])
    assert any(key.startswith("runs/served/checkpoints/") for key in held["genray"])
    assert own["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("wrong", [{"MLFLOW_TRACKING_PASSWORD": "not-the-password"}, {"MLFLOW_TRACKING_USERNAME": ""}])
def test_wrong_password_is_refused_and_says_what_to_set(exported, monkeypatch, capsys, wrong):
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["pull", "digits-generator@champion", "--to", "model"]) == 1
    said = capsys.readouterr().err
    assert "no such user name and password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    assert "not-the-password" not in said


def test_database_and_object_store_refuse_strangers(running, exported):
    log = (running[1] / "postgresql.log").read_text()
    port = int(re.search(r'IPv4 address "127\.0\.0\.1", port (\d+)', log)[1])
    with pytest.raises(DatabaseError, match="password authentication failed"):
        native.Connection(services.USER, "127.0.0.1", "mlflow", port, "not-the-password")
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        boto3.client("s3", aws_access_key_id="x", aws_secret_access_key="y").list_buckets()


def test_services_listen_on_loopback_and_keep_their_secrets(running):
    process, folder, own = running
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    bound = {c.laddr.ip for p in family[1:] for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert bound == {"127.0.0.1"}
    commands = " ".join(word for p in family[1:] for word in p.cmdline())
    secrets = [value for name, value in own.items() if re.search("PASSWORD|KEY", name)]
    assert len(secrets) == 3 and not any(value in commands for value in secrets)
    assert [str(p) for p in folder.iterdir() if p.stat().st_mode & 0o077] == []


def test_interrupted_services_leave_nothing(running):
    process, folder, _ = running
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert psutil.wait_procs(family, timeout=5)[1] == [] and not folder.exists()

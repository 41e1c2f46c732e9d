"""Tokens, passwords and keys: what they open stays shut without them, and nothing that is written holds them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import demo
import psutil
import pytest
import services

LONG = pytest.mark.skipif("GENRAY_LONG" not in os.environ, reason="two jobs over all services; set GENRAY_LONG=1")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
DOCTOR = [sys.executable, "-m", "genray", "doctor"]


def gcs_of(environment: dict[str, str]) -> str:
    """Where the head that `demo.local_ray` has started is joined."""
    words = [word for p in psutil.Process().children(recursive=True) for word in p.cmdline()]
    return f"127.0.0.1:{next(w for w in words if w.startswith('--gcs_server_port=')).partition('=')[2]}"


def test_doctor_says_that_a_cluster_and_its_job_server_refuse_the_token(tmp_path):
    with demo.local_ray() as environment:
        environment |= {"RAY_ADDRESS": gcs_of(environment), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/a.db"}
        for change in ({}, {"RAY_AUTH_TOKEN": "b" * 64}, {"RAY_AUTH_MODE": "disabled"}):
            asked = subprocess.run(DOCTOR, env=environment | change, capture_output=True, text=True, check=False)
            found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in asked.stdout.splitlines()}
            if not change:
                assert (asked.returncode, found["ray"][0], found["jobs"][0]) == (0, "OK", "OK"), asked.stdout
                continue
            who = "our token" if "RAY_AUTH_TOKEN" in change else "those without a token"
            for name, place in (("ray", "RAY_ADDRESS"), ("jobs", "RAY_API_SERVER_ADDRESS")):
                verdict, text = found[name]
                assert verdict == "FAIL" and text.startswith(place) and f"refuses {who}; set RAY_AUTH_MODE" in text
            assert asked.returncode == 1 and "b" * 64 not in asked.stdout + asked.stderr


def written(running: services.Services, scratch: list[Path], folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that the services, Ray and the jobs have written so far, by its place."""
    for place in [running.folder, folder, *scratch]:
        for path in place.rglob("*"):
            own = path.name in (services.ENVIRONMENT, "mlflow-users.ini") or "data" in path.parts
            if path.is_file() and not own:
                yield str(path), path.read_bytes()
    dump = [services.postgresql_programs() / "pg_dumpall", "--host", services.HOST, "--username", services.USER]
    dump += ["--port", str(running.postgres.port)]
    environment = os.environ | {"PGPASSWORD": running.postgres.password}
    yield "postgresql", subprocess.run(dump, env=environment, capture_output=True, check=True).stdout
    store = boto3.client("s3")
    for bucket in ("mlflow", "genray"):
        for found in store.list_objects_v2(Bucket=bucket).get("Contents", []):
            yield f"s3://{bucket}/{found['Key']}", store.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()


@LONG
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("initdb") is None and not services.DEBIAN.is_dir(), reason="needs PostgreSQL")
def test_nothing_that_a_job_writes_holds_a_secret(tmp_path, monkeypatch):
    small = ["--train.num-steps", "4", "--train.checkpoint-every", "2", "--train.log-every", "1"]
    monkeypatch.setenv("HOME", str(tmp_path))
    before = set(Path("/tmp").glob(f"{demo.SCRATCH.name}*"))
    with ExitStack() as stack:
        running = stack.enter_context(services.Services())
        for name, value in (running.mlflow.environment | running.store.environment).items():
            monkeypatch.setenv(name, value)
        ray = stack.enter_context(demo.local_ray())
        said = b""
        for storage, ends in (("s3://genray/runs", 0), ("s3://no-such-bucket/runs", 1)):
            command = [str(demo.BIN / "ray"), "job", "submit", "--working-dir", str(demo.ROOT), "--", "python"]
            command += ["jobs/train.py", "digits-vae", "--run.storage", storage, "--cluster.num-workers", "1", *small]
            job = subprocess.run(command, env=ray, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            assert job.returncode == ends, job.stdout.decode()[-3000:]
            said += job.stdout
        wrong = ray | {"MLFLOW_TRACKING_PASSWORD": "wrong-" + running.password, "RAY_ADDRESS": gcs_of(ray)}
        said += subprocess.run(DOCTOR, env=wrong, capture_output=True, check=False).stdout
        assert b"no such user name and password" in said
        listed = subprocess.run([str(demo.BIN / "ray"), "job", "list"], env=ray, capture_output=True, check=True)
        secrets = [ray["RAY_AUTH_TOKEN"], running.password, running.postgres.password]
        secrets.append(os.environ["AWS_SECRET_ACCESS_KEY"])
        scratch = [path for path in Path("/tmp").glob(f"{demo.SCRATCH.name}*") if path not in before]
        places = [("said", said), ("job list", listed.stdout + listed.stderr), *written(running, scratch, tmp_path)]
        assert {place for place, text in places for secret in secrets if secret.encode() in text} == set()
        assert any(place.endswith("model.safetensors") for place, _ in places) and len(places) > 50
        assert any(b"4/4" in text for place, text in places if "job-driver" in place)

"""`make services`: MLflow behind a password, over PostgreSQL and an S3-compatible store, on this machine.

Every service listens on loopback only and asks for a password, made anew at every start. All that
they hold lies in one folder; Ctrl-C ends them and deletes it. docs/services.md has the same for a
team, whose servers last.
"""

import configparser
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from demo import free_port
from pg8000 import native
from pg8000.exceptions import DatabaseError, InterfaceError

HOST = "127.0.0.1"
USER = "genray"
REGION = "us-east-1"
ENVIRONMENT = "services.env"
SCRATCH = Path("/tmp/genray-services-")  # noqa: S108
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 20
DEBIAN = Path("/usr/lib/postgresql")
POSTGRES_USER = "postgres"
CONNECTIONS_A_SERVER = 100
"""Of PostgreSQL to one MLflow server: a request holds two, and with MLflow's own 15 they wait for one another."""


class ServiceError(Exception):
    """A service is not installed, or does not start."""


@dataclass
class Service:
    """A process of its own group, which writes to a log file."""

    name: str
    folder: Path
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def launch(self, command: list[str], ready: Callable[[], bool], *, user: str | None = None, **more: str) -> None:
        """Starts `command` and waits until it is ready.

        Args:
            command: what runs in the foreground.
            ready: whether it takes requests.
            user: whose process it is; None: ours.
            more: variables of its environment besides ours; secrets go here, as anybody can read a command.

        Raises:
            ServiceError: it has ended, or is not ready after two minutes.
        """
        log = self.folder / f"{self.name}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ | more,
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if ready():
                return
            time.sleep(0.1)
        self.stop()
        raise ServiceError(f"{self.name} did not start within {START_TIMEOUT_S} s:\n{log.read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks the process to end, and after 20 seconds kills it; what it has started ends with it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Postgres(Service):
    """PostgreSQL with data and socket in a folder of its own; asks for a password on every connection.

    Raises:
        ServiceError: PostgreSQL is not installed, or does not start.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("postgresql", folder)
        self.port, self.password = free_port(), secrets.token_hex(24)

    def start(self) -> None:
        """Makes the cluster, and waits until it takes connections."""
        programs, user, home = postgresql_programs(), postgresql_user(), self.folder / "postgresql"
        home.mkdir()
        password = home / "password"
        password.write_text(self.password)
        if user:
            self.folder.chmod(0o711)  # it may go through, not look
            for path in (home, password):
                shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
        data = home / "data"
        command = [str(programs / "initdb"), "--pgdata", str(data), "--username", USER, "--pwfile", str(password)]
        command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        made = subprocess.run(
            command,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise ServiceError(f"initdb failed in {home}: {made.stderr[-2000:]}")
        password.unlink()
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": home,
            "max_connections": 4 * CONNECTIONS_A_SERVER,
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        self.launch([str(programs / "postgres"), "-D", str(data), *options], self._ready, user=user)

    def stop(self, number: int = signal.SIGINT) -> None:
        """PostgreSQL's fast shutdown, which ends sessions."""
        super().stop(number)

    def make_database(self, name: str) -> str:
        """The address of a new, empty database, password included."""
        with self._connection() as connection:
            connection.run(f"CREATE DATABASE {native.identifier(name)}")
        return f"postgresql+pg8000://{USER}:{self.password}@{HOST}:{self.port}/{name}"

    def _connection(self) -> native.Connection:
        return native.Connection(USER, HOST, "postgres", self.port, self.password)

    def _ready(self) -> bool:
        try:
            self._connection().close()
        except (InterfaceError, DatabaseError):
            return False
        return True


def postgresql_programs() -> Path:
    """The folder of `initdb` and `postgres`: Debian keeps them off the PATH.

    Raises:
        ServiceError: PostgreSQL is not installed.
    """
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parents[1].name))
    if found:
        return found[-1].parent
    if program := shutil.which("initdb"):
        return Path(program).resolve().parent
    raise ServiceError(f"PostgreSQL is not installed: no initdb in {DEBIAN} or on PATH; apt-get install postgresql")


def postgresql_user() -> str | None:
    """Who runs PostgreSQL, which refuses to be root; None: whoever we are.

    Raises:
        ServiceError: we are root, and PostgreSQL's own user is not there.
    """
    if os.getuid():
        return None
    if POSTGRES_USER not in {entry.pw_name for entry in pwd.getpwall()}:
        raise ServiceError(f"PostgreSQL does not run as root, and there is no user {POSTGRES_USER}; be another user")
    return POSTGRES_USER


class ObjectStore(Service):
    """moto's S3 server, which keeps its objects in memory and asks for the keys made here."""

    def __init__(self, folder: Path) -> None:
        super().__init__("s3", folder)
        self.endpoint = f"http://{HOST}:{free_port()}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
        }

    def start(self) -> None:
        """Starts the server, and makes a user who may do anything with S3."""
        command = [sys.executable, "-m", "moto.server", "--host", HOST, "--port", self.endpoint.rpartition(":")[2]]
        # the three calls that make the user go unsigned; from then on every call must be signed by a user
        self.launch(command, self._ready, INITIAL_NO_AUTH_ACTION_COUNT="3")
        iam = self._client("iam", "none", "none")
        iam.create_user(UserName=USER)
        policy = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}'
        iam.put_user_policy(UserName=USER, PolicyName="s3", PolicyDocument=policy)
        key = iam.create_access_key(UserName=USER)["AccessKey"]
        self.environment |= {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def make_bucket(self, name: str) -> str:
        """The address of a new bucket."""
        keys = self.environment["AWS_ACCESS_KEY_ID"], self.environment["AWS_SECRET_ACCESS_KEY"]
        self._client("s3", *keys).create_bucket(Bucket=name)
        return f"s3://{name}"

    def _client(self, service: str, key: str, secret: str) -> "boto3.client":
        return boto3.client(
            service, REGION, endpoint_url=self.endpoint, aws_access_key_id=key, aws_secret_access_key=secret
        )

    def _ready(self) -> bool:
        return _answers(f"{self.endpoint}/moto-api/data.json")


class MLflow(Service):
    """An MLflow server with sign-in, whose records are in PostgreSQL and whose artifacts go through it to S3.

    Args:
        folder: for its log and the settings of the sign-in.
        postgres: running.
        store: running.
        name: of its databases and its bucket.
        password: of its first user.
    """

    def __init__(self, folder: Path, postgres: Postgres, store: ObjectStore, name: str, password: str) -> None:
        super().__init__(name, folder)
        self.uri, self.password = f"http://{HOST}:{free_port()}", password
        self._postgres, self._store = postgres, store
        self._records = postgres.make_database(name)
        self._artifacts = store.make_bucket(name)
        users = configparser.ConfigParser(interpolation=None)
        users["mlflow"] = {
            "default_permission": "READ",
            "database_uri": postgres.make_database(f"{name}_users"),
            "admin_username": USER,
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
            "auth_cache_ttl_seconds": "60",  # else every request takes a fifth of a second to check its password
        }
        self._users = folder / f"{name}-users.ini"
        self._users.touch(0o600)
        with self._users.open("w") as file:
            users.write(file)
        self._secret_key = secrets.token_hex(32)

    @property
    def environment(self) -> dict[str, str]:
        """What its users export."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def start(self) -> None:
        """Starts the server, with its tables and its first user, or again with those that there are."""
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", HOST]
        # one worker: with several and no uvloop every request takes 40 ms longer
        command += ["--port", self.uri.rpartition(":")[2], "--workers", "1", "--artifacts-destination", self._artifacts]
        secret = {
            "MLFLOW_BACKEND_STORE_URI": self._records,
            "MLFLOW_AUTH_CONFIG_PATH": str(self._users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._secret_key,
        }
        settings = {
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(CONNECTIONS_A_SERVER * 2 // 5),
            "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(CONNECTIONS_A_SERVER * 3 // 5),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.launch(command, self._ready, **settings, **secret, **self._store.environment)

    def _ready(self) -> bool:
        return _answers(f"{self.uri}/health")


class Services:
    """PostgreSQL, the object store and one MLflow server, in a folder that lasts as long as a `with` block."""

    def __enter__(self) -> "Services":
        self.folder = Path(tempfile.mkdtemp(prefix=SCRATCH.name, dir=SCRATCH.parent))
        self.password = secrets.token_urlsafe(24)
        self.postgres, self.store = Postgres(self.folder), ObjectStore(self.folder)
        self._running: list[Service] = []
        try:
            for service in (self.postgres, self.store):
                self._running.append(service)
                service.start()
            self.store.make_bucket("genray")
            self.mlflow = self.server("mlflow")
            self._running.append(self.mlflow)
            self.mlflow.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            self._running.pop().stop()
        shutil.rmtree(self.folder)

    def server(self, name: str) -> MLflow:
        """An MLflow server, not yet started, with records, users and artifacts of its own."""
        return MLflow(self.folder, self.postgres, self.store, name, self.password)

    def write_environment(self) -> Path:
        """A file, for its owner only, of what the users of the services export."""
        path = self.folder / ENVIRONMENT
        path.touch(0o600)
        values = self.mlflow.environment | self.store.environment
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        return path


def main() -> int:
    """Starts the services and keeps them until it is interrupted."""
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        with Services() as services:
            print(
                f"MLflow at {services.mlflow.uri} for {USER}, S3 at {services.store.endpoint}; where they are used:\n"
            )
            print(f"    set -a; . {services.write_environment()}; set +a\n")
            print("and --run.storage s3://genray/runs. Ctrl-C ends them and deletes all that they hold.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except (ServiceError, BotoCoreError, ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

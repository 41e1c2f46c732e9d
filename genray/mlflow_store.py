"""Where MLflow keeps its records: which address, whether it answers, and what went wrong.

MLflow's own defaults would hide an absent server for four minutes (7 retries with growing pauses)
and let a hanging one block for two. Importing this module sets, where the environment does not
already, one retry (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`), 60 seconds without an answer
(`MLFLOW_HTTP_REQUEST_TIMEOUT`; a server may take that long to store a large model) and no telemetry
(`MLFLOW_DISABLE_TELEMETRY`). Files come through the server (`MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD`),
not by signed addresses of its object store, which its users need not reach and nobody should find in
a log. Who needs patience waits in a loop of his own, as the drain does.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from genray.errors import GenrayError, TrackingError

_log = logging.getLogger(__name__)

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_PROBE_SECONDS = 8.0
_CAUSES = (
    ("Invalid Host header", "it does not know itself by this host name; see `mlflow server --allowed-hosts`"),
    ("QueuePool", "its pool of database connections is exhausted; see MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"),
    ("database is locked", "another process holds the database; let all go through one `mlflow server`"),
    ("Connection refused", "connection refused"),
    ("NameResolution|Name or service|getaddrinfo|nodename nor", "unknown host name"),
    ("CERTIFICATE_VERIFY|SSLError", "TLS certificate not accepted; see MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ("timed out|Timeout", "no answer in time"),
    ("Connection aborted|RemoteDisconnected|reset by peer", "connection lost"),
    (
        r"UNAUTHENTICATED|Unauthorized|\b401\b",
        "no such user name and password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ),
    (r"PERMISSION_DENIED|\b403\b", "this user may not do that"),
)


def resolve_uri(uri: str | None, base: Path) -> str:
    """The complete address of the MLflow store.

    Args:
        uri: `tracking.uri` of the configuration. None: $MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.
        base: absolute folder that a relative SQLite path counts from.

    Raises:
        TrackingError: an address that MLflow cannot keep runs at.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme = urlsplit(uri).scheme
    if scheme.partition("+")[0] not in ("http", "https", *_DATABASES):
        raise TrackingError(
            f"tracking.uri={redact(uri)!r} must be http(s)://HOST:PORT, sqlite:///FILE or another database; "
            f"MLflow no longer writes to plain folders"
        )
    if scheme != "sqlite":
        return uri.rstrip("/")
    path = uri.removeprefix("sqlite:///")
    if path in ("", uri, ":memory:"):
        raise TrackingError(f"tracking.uri={uri!r} names no file; write sqlite:///mlflow.db")
    return f"sqlite:///{(base / path).absolute()}"


def redact(uri: str) -> str:
    """`uri` without user name and password: fit for messages and logs."""
    return re.sub(r"//[^/@\s]*@", "//", uri)


def database(uri: str) -> Path | None:
    """The file of a SQLite address; None for servers and other databases."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers; a new SQLite file is given its tables by one process only.

    Args:
        uri: what `resolve_uri` returned.

    Raises:
        TrackingError: nobody answers at `uri` within about eight seconds.
    """
    path = database(uri)
    with reporting(uri):
        if path is not None:
            # Two processes that create the tables at once leave a file that is broken for ever.
            with exclusive(path.with_name(f"{path.name}.lock")), _quiet("alembic", "mlflow.store.db.utils"):
                return MlflowClient(tracking_uri=uri, registry_uri=uri)
        if uri.startswith(("http://", "https://")):
            verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
            answer = requests.get(f"{uri}/health", timeout=_PROBE_SECONDS, verify=verify)
            if answer.status_code in (502, 503, 504):
                raise TrackingError(_absent(uri, f"a gateway answers {answer.status_code} {answer.reason}"))
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def reporting(uri: str) -> Iterator[None]:
    """Turns what MLflow and its transport raise into a TrackingError that names the address and the cure."""
    try:
        yield
    except requests.RequestException as error:
        raise TrackingError(_absent(uri, cause(error))) from error
    except MlflowException as error:
        if re.search(r"Max retries exceeded|API request to .* failed with exception", str(error)):
            raise TrackingError(_absent(uri, cause(error))) from error
        raise TrackingError(f"tracking.uri={redact(uri)!r}: MLflow refuses: {cause(error)}") from error


def wait_for(uri: str, timeout: float) -> bool:
    """Whether the store answers, now or within `timeout` seconds; one line on the log says that it is waited for."""
    deadline, waiting = time.monotonic() + timeout, False
    while True:
        try:
            connect(uri)
            return True
        except TrackingError as error:
            if time.monotonic() > deadline:
                return False
            if not waiting:
                _log.warning("waiting up to %.0f s for MLflow: %s", timeout, error)
            waiting = True
            time.sleep(1)


def cause(error: BaseException) -> str:
    """What went wrong, in a few words and without secrets."""
    if isinstance(error, GenrayError):
        return str(error)
    text = f"{type(error).__name__}: {error}"
    for pattern, words in _CAUSES:
        if re.search(pattern, text):
            return words
    return redact(" ".join(text.split()))[:200]


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Only one process of this host is inside for one `path`; the file stays, and is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _absent(uri: str, words: str) -> str:
    return (
        f"tracking.uri={redact(uri)!r}: the MLflow server does not answer ({words}); "
        f"start one with `mlflow server`, or leave tracking.uri out for sqlite:///mlflow.db"
    )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

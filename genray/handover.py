"""A snapshot as one encrypted file, for handing it over.

The file is in the format of age (age-encryption.org/v1: X25519, ChaCha20-Poly1305 in blocks of 64 KiB,
each authenticated), and holds a tar archive of the snapshot's three files, so that age and tar open it
too. It is written and read as a stream: memory does not grow with the model, and no archive is ever on
a disk in the clear.
"""

import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyrage

from genray import snapshot
from genray.errors import CheckpointError, ConfigError
from genray.manifest import MANIFEST, verify

NAMES = (MANIFEST, snapshot.CARD, snapshot.WEIGHTS)
MAX_BYTES = 64 << 30
Stream = Callable[[IO[bytes]], object]


def export(directory: Path, to: Path, recipients: Sequence[str]) -> None:
    """Encrypts the snapshot at `directory` to `to`, for whoever has the key of one of the recipients.

    Args:
        directory: of a whole snapshot.
        to: file to make, for its owner only.
        recipients: public keys: `age1…` of age, or `ssh-ed25519 …` and `ssh-rsa …`.

    Raises:
        ConfigError: a recipient is no public key, or `to` is there already.
        CheckpointError: the snapshot is damaged.
    """
    public = [_recipient(text) for text in recipients]
    if not public:
        raise ConfigError("no recipient given; expected the public key of whoever may open the file, e.g. age1…")
    if to.exists():
        raise ConfigError(f"{to} exists; give the name of a new file")
    verify(directory, (snapshot.WEIGHTS, snapshot.CARD))

    def archive(out: IO[bytes]) -> None:
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name in NAMES:
                tar.add(directory / name, name, filter=_anonymous)

    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=to.parent, prefix=f".{to.name}.") as beside:  # mode 600
        with _piped(archive) as clear:
            pyrage.encrypt_io(clear, beside, public)
        beside.flush()
        os.fsync(beside.fileno())
        os.link(beside.name, to)


def bring(source: Path, to: Path, identity: Path) -> str:
    """Decrypts a file that `export` made to the snapshot folder `to`; its digest.

    Args:
        source: the encrypted file.
        to: folder to make, for its owner only. It appears when all of it has been checked, or not at all.
        identity: file with the secret key, as `age-keygen` or `ssh-keygen` (without a passphrase) made it.

    Raises:
        ConfigError: the identity is no secret key, or `to` is there already.
        CheckpointError: the file is for another key, was altered or cut off, or holds no snapshot.
    """
    secret = _identity(identity)
    if to.exists():
        raise ConfigError(f"{to} exists; give the name of a new folder")
    if not source.is_file():
        raise CheckpointError(f"{source} is not there; expected a file that genray export made")

    def decrypt(out: IO[bytes]) -> None:
        try:
            with source.open("rb") as sealed:
                pyrage.decrypt_io(sealed, out, [secret])
        except (pyrage.DecryptError, OSError) as error:
            raise CheckpointError(
                f"{source} does not open with {identity} ({error}): it is for another key, or was altered or cut off"
            ) from None

    to.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))  # mode 700
    try:
        with _piped(decrypt) as clear:
            _unpack(clear, beside)
        digest = verify(beside, (snapshot.WEIGHTS, snapshot.CARD))
        beside.rename(to)
    except (tarfile.TarError, EOFError) as error:
        raise CheckpointError(f"{source} holds no snapshot: {error}; expected what genray export made") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return digest


def _unpack(clear: IO[bytes], folder: Path) -> None:
    with tarfile.open(fileobj=clear, mode="r|") as tar:
        for member in tar:
            if member.name not in NAMES or not member.isreg() or not 0 <= member.size <= MAX_BYTES:
                raise CheckpointError(f"the archive holds {member.name!r}, no file of a snapshot; do not use it")
            content = tar.extractfile(member)
            assert content is not None
            made = os.open(folder / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(made, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
    while clear.read(1 << 20):  # to the last block, which says that it is the last
        pass


@contextmanager
def _piped(write: Stream) -> Iterator[IO[bytes]]:
    """What `write` writes in a thread of its own, to be read meanwhile; its error comes before what it made of that."""
    reading, writing = os.pipe()
    errors: list[Exception] = []

    def run() -> None:
        try:
            with os.fdopen(writing, "wb") as out:
                write(out)
        except Exception as error:  # raised where it is read, unless that has ended
            errors.append(error)

    thread = threading.Thread(target=run, name="handover", daemon=True)
    thread.start()
    try:
        with os.fdopen(reading, "rb") as clear:
            yield clear
    except (tarfile.TarError, EOFError):
        thread.join()
        if errors:
            raise errors[0] from None
        raise
    thread.join()
    if errors:
        raise errors[0]


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name of who made it and when."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o600
    return member


def _recipient(text: str) -> object:
    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(text.strip())
    except pyrage.RecipientError:
        raise ConfigError(
            f"recipient {text[:20]!r} is no public key; expected age1… (of age-keygen), ssh-ed25519 … or ssh-rsa …"
        ) from None


def _identity(path: Path) -> object:
    wanted = "expected the secret key that age-keygen or ssh-keygen made, without a passphrase"
    try:
        text = path.read_text()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"identity {path} cannot be read: {error}; {wanted}") from None
    try:
        if "OPENSSH PRIVATE KEY" in text:
            return pyrage.ssh.Identity.from_buffer(text.encode())
        keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return pyrage.x25519.Identity.from_str(keys[0] if len(keys) == 1 else "")
    except pyrage.IdentityError:
        raise ConfigError(f"identity {path} is no secret key; {wanted}") from None

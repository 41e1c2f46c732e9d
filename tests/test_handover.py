"""A model as one encrypted file: whoever has the key gets the same snapshot, and nobody else anything."""

import io
import json
import os
import stat
import tarfile
from pathlib import Path

import evaluation_snapshots as snapshots
import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from genray import cli, handover, snapshot
from genray.errors import CheckpointError, ConfigError, GenrayError
from genray.manifest import seal, verify


@pytest.fixture
def key(tmp_path: Path) -> Path:
    secret = pyrage.x25519.Identity.generate()
    (tmp_path / "key.txt").write_text(f"# created: today\n# public key: {secret.to_public()}\n{secret}\n")
    return tmp_path / "key.txt"


def public(key: Path) -> str:
    return key.read_text().split("public key: ")[1].split()[0]


@pytest.fixture
def made(key: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A sealed folder, the file that it was exported to, of several blocks, and the key of its recipient."""

    def write(folder: Path) -> None:
        (folder / snapshot.WEIGHTS).write_bytes(os.urandom(4 << 16))
        (folder / snapshot.CARD).write_text(json.dumps({"step": list(range(40))}))

    seal(tmp_path / "snapshot", write)
    handover.export(tmp_path / "snapshot", tmp_path / "model.age", [public(key)])
    return tmp_path / "snapshot", tmp_path / "model.age", key


@pytest.mark.mlflow
def test_imported_model_is_the_exported_one_for_this_user_alone(key, tmp_path):
    folder, file, opened = snapshots.save_generator(tmp_path / "s"), tmp_path / "m.age", tmp_path / "a" / "model"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert cli.main(["export", str(folder), "--to", str(file), "--recipient", public(key), "--uri", uri]) == 0
    assert cli.main(["import", str(file), "--identity", str(key), "--to", str(opened)]) == 0
    assert snapshot.load(opened).digest == snapshot.load(folder).digest
    assert {stat.S_IMODE(p.stat().st_mode) for p in (file, *opened.iterdir())} == {0o600}
    assert stat.S_IMODE(opened.stat().st_mode) == 0o700
    assert [path.name for path in opened.parent.iterdir()] == ["model"]


def test_exported_file_shows_nothing_of_the_model(made):
    folder, file, _ = made
    sealed = file.read_bytes()
    parts = [part for path in folder.iterdir() for part in (path.read_bytes()[:64], path.read_bytes()[-64:])]
    assert not any(part in sealed for part in [*parts, b"model.safetensors", b"ustar"])


def test_key_of_ssh_opens_what_was_exported_for_it(made, tmp_path):
    secret = Ed25519PrivateKey.generate()
    text = secret.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (tmp_path / "id").write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    handover.export(made[0], tmp_path / "b.age", [text])
    digest = handover.bring(tmp_path / "b.age", tmp_path / "opened", tmp_path / "id")
    assert digest == verify(made[0], (snapshot.WEIGHTS, snapshot.CARD))


def refusal(file: Path, key: Path) -> tuple[str, bool]:
    """What the refusal of a file says, and whether it leaves nothing."""
    before = sorted(file.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        handover.bring(file, file.parent / "opened", key)
    return str(error.value), sorted(file.parent.iterdir()) == before


@pytest.mark.parametrize("where", [0.1, 0.5, 0.99999])
def test_one_flipped_byte_is_refused_and_leaves_nothing(made, where):
    _, file, key = made
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    said, left_nothing = refusal(file, key)
    assert "altered or cut off" in said and left_nothing


@pytest.mark.parametrize("change", [lambda c: c[: 1 << 16], lambda c: c[:-1], lambda c: c + b"x"])
def test_file_that_was_cut_off_or_added_to_is_refused(made, change):
    _, file, key = made
    file.write_bytes(change(file.read_bytes()))
    said, left_nothing = refusal(file, key)
    assert "altered or cut off" in said and left_nothing


def test_another_key_is_refused_and_leaves_nothing(made):
    _, file, key = made
    key.write_text(str(pyrage.x25519.Identity.generate()))
    said, left_nothing = refusal(file, key)
    assert "is for another key" in said and left_nothing


@pytest.mark.parametrize("name", ["../evil", "evil.py", "/etc/evil"])
def test_archive_with_a_foreign_file_is_refused(made, name):
    _, file, key = made
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    file.write_bytes(pyrage.encrypt(archive.getvalue(), [pyrage.x25519.Recipient.from_str(public(key))]))
    said, left_nothing = refusal(file, key)
    assert "no file of a snapshot; do not use it" in said and left_nothing


def test_what_is_no_key_is_refused_without_repeating_it(made, tmp_path):
    with pytest.raises(ConfigError, match="is no public key; expected age1"):
        handover.export(made[0], tmp_path / "b.age", ["me"])
    made[2].write_text("AGE-SECRET-KEY-1HUNTER2")
    with pytest.raises(ConfigError, match="is no secret key") as error:
        handover.bring(made[1], tmp_path / "opened", made[2])
    assert "HUNTER2" not in str(error.value) and not (tmp_path / "b.age").exists()


def test_nothing_is_overwritten(made, tmp_path):
    folder, file, key = made
    for act in (lambda: handover.export(folder, file, [public(key)]), lambda: handover.bring(file, folder, key)):
        with pytest.raises(GenrayError, match="exists; give the name of a new"):
            act()

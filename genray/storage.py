"""The folder of one run: local files, mirrored to wherever `run.storage` says.

On a path that every node sees, the local folder *is* the storage. On an object store the run works
in a local scratch folder and copies what is finished, the manifest of a sealed folder last, so that
what is listed there is whole.
"""

import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from genray.errors import StorageError
from genray.manifest import MANIFEST, written_whole

JOURNAL = "journal"
SCRATCH = Path("~/.cache/genray/runs")


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps its checkpoints, snapshots, scores and journal."""

    local: Path
    remote: fs.FileSystem | None = None
    """The storage behind a scratch folder; None: `local` is the storage."""

    @classmethod
    def open(cls, storage: str, name: str) -> "RunFolder":
        """The folder of run `name`, made if it is new.

        Raises:
            StorageError: the storage is not a path or URI that can be used, or cannot be written.
        """
        if not name or name.startswith(".") or "/" in name:
            raise StorageError(f"run.name={name!r} cannot name a folder; use letters, digits, '-' and '_'")
        try:
            if "://" not in storage or storage.startswith("file://"):
                local = Path(storage.removeprefix("file://")).expanduser().absolute() / name
                local.mkdir(parents=True, exist_ok=True)
                return cls(local)
            filesystem, base = fs.FileSystem.from_uri(storage)
            filesystem.create_dir(f"{base}/{name}", recursive=True)
        except (OSError, ValueError) as error:
            raise _unusable(storage, error) from error
        key = hashlib.sha256(f"{storage}/{name}".encode()).hexdigest()[:16]
        local = SCRATCH.expanduser() / f"{name}-{key}"
        local.mkdir(parents=True, exist_ok=True)
        return cls(local, fs.SubTreeFileSystem(f"{base}/{name}", filesystem))

    def probe(self) -> None:
        """Writes, reads and deletes a small file in the storage.

        Raises:
            StorageError: one of the three failed.
        """
        name = f".probe-{uuid.uuid4().hex}"
        try:
            (self.local / name).write_text(name)
            self.push(name)
            found = self.pull(name).read_text()
            self.remove(name)
        except OSError as error:
            raise _unusable(str(self.local), error) from error
        if found != name:
            raise _unusable(str(self.local), OSError("it gave back other bytes than were written"))

    def names(self, folder: str) -> list[str]:
        """Sorted names of what `folder` holds in the storage, without hidden ones."""
        if self.remote is None:
            path = self.local / folder
            found = [p.name for p in path.iterdir()] if path.is_dir() else []
        else:
            selector = fs.FileSelector(folder, allow_not_found=True)
            found = [info.base_name for info in self.remote.get_file_info(selector)]
        return sorted(name for name in found if not name.startswith("."))

    def write(self, relative: str, text: str) -> None:
        """Puts a small file into the storage, the whole of it or, where that fails, none."""
        with written_whole(self.local / relative) as beside, beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.push(relative)

    def push(self, relative: str) -> None:
        """Copies a finished local file or sealed folder to the storage."""
        if self.remote is None:
            return
        source = self.local / relative
        if source.is_file():
            self._copy_out(relative)
            return
        self.remote.create_dir(relative, recursive=True)
        for path in sorted(source.iterdir(), key=lambda p: p.name == MANIFEST):
            self._copy_out(f"{relative}/{path.name}")

    def push_journal(self, name: str) -> None:
        """Copies the journal `name`, as far as it goes now, to the storage, after the pictures that it speaks of.

        A journal has one writer, who alone copies it: nobody else has all of it.
        """
        if self.remote is None:
            return
        journal = f"{JOURNAL}/{name}.jsonl"
        size = (self.local / journal).stat().st_size
        pictures = f"{JOURNAL}/{name}"
        selector = fs.FileSelector(pictures, recursive=True, allow_not_found=True)
        there = {info.path for info in self.remote.get_file_info(selector)}
        for path in sorted((self.local / pictures).rglob("[!.]*.png")):
            relative = path.relative_to(self.local).as_posix()
            if relative not in there:
                self._copy_out(relative)
        self._copy_out(journal, size)

    def pull_journal(self, name: str) -> Path:
        """The local folder of journals, with that of `name` as it was last copied to the storage, for its writer."""
        return self.pull(f"{JOURNAL}/{name}.jsonl").parent

    @property
    def mirror(self) -> "RunFolder":
        """A local folder of its own for the same storage: for a reader, who may be on the machine of a writer."""
        return self if self.remote is None else RunFolder(self.local / "mirror", self.remote)

    def follow_journals(self) -> Path:
        """The local folder of journals, with what has come into the storage since the last time.

        Journals are taken before the pictures that they speak of, so that none of these is missing.
        """
        folder = self.local / JOURNAL
        if self.remote is None:
            return folder
        for recursive in (False, True):
            for info in self.remote.get_file_info(fs.FileSelector(JOURNAL, recursive=recursive, allow_not_found=True)):
                target = self.local / info.path
                is_new = not target.is_file() or target.stat().st_size != info.size
                if info.type == fs.FileType.File and is_new and recursive == ("/" in info.path[len(JOURNAL) + 1 :]):
                    self._copy_in(info.path, target)
        return folder

    def pull(self, relative: str) -> Path:
        """The local path of a file or folder of the storage, copied here first where it is remote.

        A sealed folder that is here already is left as it is: others may be reading it.
        """
        target = self.local / relative
        if self.remote is None:
            return target
        info = self.remote.get_file_info(relative)
        if info.type == fs.FileType.NotFound or self._same_seal(relative):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        if info.type == fs.FileType.File:
            self._copy_in(relative, beside)
        else:
            beside.mkdir()
            for found in self.remote.get_file_info(fs.FileSelector(relative, recursive=True)):
                if found.type == fs.FileType.File:
                    self._copy_in(found.path, beside / found.path.removeprefix(f"{relative}/"))
        if target.is_dir():
            shutil.rmtree(target)
        beside.rename(target)
        return target

    def remove(self, relative: str) -> None:
        """Deletes a file or folder here and in the storage; one that is gone already is fine."""
        if self.remote is not None:
            info = self.remote.get_file_info(relative)
            if info.type == fs.FileType.Directory:
                self.remote.delete_dir(relative)
            elif info.type == fs.FileType.File:
                self.remote.delete_file(relative)
        path = self.local / relative
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def holds(self, relative: str) -> bool:
        """Whether the storage has this file."""
        if self.remote is None:
            return (self.local / relative).is_file()
        return bool(self.remote.get_file_info(relative).type == fs.FileType.File)

    def _same_seal(self, relative: str) -> bool:
        assert self.remote is not None
        here, there = self.local / relative / MANIFEST, f"{relative}/{MANIFEST}"
        if not here.is_file() or not self.holds(there):
            return False
        with self.remote.open_input_stream(there) as source:
            return bool(source.read() == here.read_bytes())

    def _copy_in(self, relative: str, target: Path) -> None:
        assert self.remote is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.remote.open_input_stream(relative) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)

    def _copy_out(self, relative: str, size: int | None = None) -> None:
        assert self.remote is not None
        parent = relative.rpartition("/")[0]
        if parent:
            self.remote.create_dir(parent, recursive=True)
        with (self.local / relative).open("rb") as source, self.remote.open_output_stream(relative) as out:
            if size is None:
                shutil.copyfileobj(source, out, 1 << 20)
            else:
                out.write(source.read(size))


def _unusable(storage: str, error: Exception) -> StorageError:
    return StorageError(
        f"run.storage={storage!r} cannot be used: {error}; "
        "give a folder or URI (s3://, gs://) that this user may write to"
    )

"""Run folders: local ones, and ones behind an object store's interface."""

import resource

import numpy as np
import pytest
from pyarrow import fs

from genray import checkpoint
from genray.errors import StorageError
from genray.manifest import seal
from genray.storage import RunFolder
from genray.tracking import JsonlTracker, read_journal


@pytest.fixture
def remote(tmp_path):
    """A run folder whose storage is reached through pyarrow, as an object store is."""
    (tmp_path / "store").mkdir()
    (tmp_path / "scratch").mkdir()
    return RunFolder(tmp_path / "scratch", fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem()))


def test_storage_that_cannot_be_written_is_refused_with_its_name():
    with pytest.raises(StorageError, match=r"run\.storage='/dev/null/runs' cannot be used: .*; give a folder or URI"):
        RunFolder.open("/dev/null/runs", "a")


def test_storage_of_an_unknown_scheme_is_refused():
    with pytest.raises(StorageError, match=r"run\.storage='gopher://x/y' cannot be used"):
        RunFolder.open("gopher://x/y", "a")


def test_run_name_that_leaves_the_storage_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"run\.name='\.\./x' cannot name a folder"):
        RunFolder.open(str(tmp_path), "../x")


def test_probe_leaves_nothing_behind(tmp_path, remote):
    folder = RunFolder.open(str(tmp_path / "runs"), "a")
    folder.probe()
    remote.probe()
    assert list(folder.local.iterdir()) == []
    assert remote.remote.get_file_info(fs.FileSelector("")) == []


def test_file_that_there_is_no_room_for_leaves_the_old_one(tmp_path):
    folder = RunFolder.open(str(tmp_path), "a")
    folder.write("note.json", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            folder.write("note.json", "more than four bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(path.name, path.read_text()) for path in folder.local.iterdir()] == [("note.json", "old")]


def test_checkpoint_on_remote_storage_is_found_by_a_node_that_never_wrote_it(tmp_path, remote):
    store = checkpoint.FolderStore(remote)
    store.save(checkpoint.Checkpoint(5, {}, {"a": 1}))
    elsewhere = RunFolder(tmp_path / "other-node", remote.remote)
    found = checkpoint.latest(elsewhere)
    assert found is not None
    assert (found.step, found.state) == (5, {"a": 1})


def test_upload_broken_off_before_the_manifest_is_not_taken_for_a_checkpoint(tmp_path, remote):
    store = checkpoint.FolderStore(remote)
    store.save(checkpoint.Checkpoint(5, {}, {}))
    store.save(checkpoint.Checkpoint(6, {}, {}))
    remote.remote.delete_file(f"checkpoints/{checkpoint.step_name(6)}/manifest.json")
    found = checkpoint.latest(RunFolder(tmp_path / "other-node", remote.remote))
    assert found is not None and found.step == 5


def test_prune_deletes_here_and_in_the_storage(remote):
    store = checkpoint.FolderStore(remote)
    for step in (1, 2, 3):
        store.save(checkpoint.Checkpoint(step, {}, {}))
    store.prune(1, best_step=1)
    left = [checkpoint.step_name(step) for step in (1, 3)]
    assert remote.names("checkpoints") == left
    assert sorted(p.name for p in (remote.local / "checkpoints").iterdir()) == left


def test_sealed_folder_whose_writer_fails_is_not_there(tmp_path):
    def write(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        seal(tmp_path / "a", write)
    assert list(tmp_path.iterdir()) == []


def test_half_a_checkpoint_of_a_killed_writer_is_deleted_with_the_next(tmp_path):
    folder = RunFolder.open(str(tmp_path), "a")
    half = tmp_path / "a" / "checkpoints" / f".{checkpoint.step_name(4)}.0123abcd.tmp"
    half.mkdir(parents=True)
    (half / checkpoint.TENSORS).write_bytes(b"half")
    store = checkpoint.FolderStore(folder)
    store.save(checkpoint.Checkpoint(5, {}, {}))
    store.prune(3, best_step=None)
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == [checkpoint.step_name(5)]


def test_journal_and_its_pictures_reach_a_reader_on_the_machine_of_their_writer(remote):
    written = JsonlTracker(remote.pull_journal("train"), "train")
    read = remote.mirror
    for step in (1, 2):
        written.metrics(step, {"loss": 0.5})
        written.image(step, "samples/fixed", np.zeros((2, 2, 3), np.uint8))
        remote.push_journal("train")
        entries, _ = read_journal(read.follow_journals() / "train.jsonl")
        assert [entry["step"] for entry in entries] == [n for n in range(1, step + 1) for _ in ("metrics", "image")]
        assert all((read.local / "journal" / entry["path"]).is_file() for entry in entries if "path" in entry)
    written.close()
    assert len(read_journal(remote.local / "journal" / "train.jsonl")[0]) == 4


def test_two_writers_of_journals_leave_each_other_theirs(tmp_path, remote):
    elsewhere = RunFolder(tmp_path / "other-node", remote.remote)
    for folder, name in ((remote, "train"), (elsewhere, "eval"), (remote, "train")):
        tracker = JsonlTracker(folder.pull_journal(name), name)
        tracker.metrics(len(read_journal(folder.local / "journal" / f"{name}.jsonl")[0]), {"loss": 0.5})
        tracker.close()
        folder.push_journal(name)
    there = remote.mirror.follow_journals()
    assert [len(read_journal(there / f"{name}.jsonl")[0]) for name in ("train", "eval")] == [2, 1]


def test_sealed_folder_that_is_here_is_not_copied_again_under_its_readers(remote):
    seal(remote.local / "s", lambda folder: (folder / "a").write_text("1"))
    remote.push("s")
    opened = (remote.local / "s" / "a").stat().st_ino
    assert (remote.pull("s") / "a").stat().st_ino == opened
    other = RunFolder(remote.local.parent / "again", remote.remote)
    seal(other.local / "s", lambda folder: (folder / "a").write_text("2"))
    other.push("s")
    assert (remote.pull("s") / "a").read_text() == "2"

import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from evaluation_snapshots import DIGITS, save_classifier

from genray import snapshot
from genray.data.images import ImageSet
from genray.errors import StorageError
from genray.evaluation import reference
from genray.evaluation.features import extract
from genray.evaluation.frechet import Moments
from genray.evaluation.reference import reference_of


def reals(num=40, digest="a" * 64):
    images = torch.randint(256, (num, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageSet(images, torch.arange(num) % 10, DIGITS, "digits", "test", digest, 0)


@pytest.fixture
def extractor(tmp_path):
    return snapshot.load(save_classifier(tmp_path / "classifier"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def computed(monkeypatch):
    """Grows by one whenever features of the reals are computed."""
    calls = []
    monkeypatch.setattr(reference, "extract", lambda *args: calls.append(1) or extract(*args))
    return calls


def test_reference_is_features_moments_and_root_of_the_reals(extractor):
    found = reference_of(reals(), extractor)
    assert torch.equal(found.features, extract(extractor, reals().images))
    assert torch.equal(found.moments.scatter, Moments.of(found.features).scatter)
    assert torch.equal(found.root, found.moments.root)


def test_reference_is_computed_once_and_comes_back_bit_equal(extractor, cache, monkeypatch):
    calls = computed(monkeypatch)
    first, second = (reference_of(reals(), extractor, cache=cache) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first.features, second.features) and torch.equal(first.root, second.root)
    assert first.moments.count == second.moments.count == 40
    assert torch.equal(first.moments.mean, second.moments.mean)
    assert torch.equal(first.moments.scatter, second.moments.scatter)


def test_reference_of_other_data_split_or_extractor_is_computed_anew(extractor, cache, monkeypatch):
    calls = computed(monkeypatch)
    reference_of(reals(), extractor, cache=cache)
    reference_of(reals(digest="b" * 64), extractor, cache=cache)
    reference_of(replace(reals(), split="train"), extractor, cache=cache)
    reference_of(reals(), replace(extractor, digest="c" * 64), cache=cache)
    assert len(calls) == 4


@pytest.mark.parametrize("damage", ["torn", "flipped", "missing", "no manifest"])
def test_reference_that_is_damaged_is_not_taken_but_made_again(extractor, cache, monkeypatch, damage):
    whole = reference_of(reals(), extractor, cache=cache)
    (path,) = cache.glob(f"*/{reference.FILE}")
    data = path.read_bytes()
    if damage == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        path.unlink()
    else:
        (path.parent / "manifest.json").unlink()
    calls = computed(monkeypatch)
    again = reference_of(reals(), extractor, cache=cache)
    assert len(calls) == 1 and torch.equal(again.features, whole.features)
    assert reference_of(reals(), extractor, cache=cache) and len(calls) == 1


def test_reference_leaves_one_sealed_folder_and_a_lock_in_the_cache(extractor, cache):
    reference_of(reals(), extractor, cache=cache)
    names = sorted(path.name for path in cache.iterdir())
    assert len(names) == 2 and names[1].startswith("reference-") and names[0] == f".{names[1]}.lock"


def test_reference_in_a_cache_that_cannot_be_made_is_a_storage_error(extractor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cache .*file/cache cannot be used: .*give a folder"):
        reference_of(reals(), extractor, cache=tmp_path / "file" / "cache")


def ask(directory, cache, barrier, results):
    torch.set_num_threads(1)
    extractor = snapshot.load(directory)
    calls = []
    reference.extract = lambda *args: calls.append(1) or extract(*args)
    barrier.wait()
    found = reference_of(reals(), extractor, cache=cache)
    results.put((len(calls), float(found.features.double().sum())))


def test_reference_asked_for_by_four_threads_at_once_is_computed_by_one(extractor, cache, monkeypatch):
    calls = computed(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(reference_of, reals(), extractor, cache=cache) for _ in range(4)]
    assert len({float(answer.result().features.double().sum()) for answer in answers}) == 1
    assert len(calls) == 1


@pytest.mark.slow
def test_reference_asked_for_by_three_processes_at_once_is_computed_by_one(tmp_path, cache):
    directory = save_classifier(tmp_path / "classifier")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=ask, args=(directory, cache, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sum(calls for calls, _ in answers) == 1
    assert len({total for _, total in answers}) == 1


def test_reference_after_the_cache_was_deleted_is_made_again(extractor, cache):
    first = reference_of(reals(), extractor, cache=cache)
    shutil.rmtree(cache)
    assert torch.equal(reference_of(reals(), extractor, cache=cache).features, first.features)

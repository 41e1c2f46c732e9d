"""The order of the images, and what arrives on the device."""

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genray.config import Data
from genray.data.images import ImageSet, load_images
from genray.data.sampler import Loader, Sampler
from genray.errors import DataError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(Data(name="digits"), "test")


@pytest.fixture(scope="module")
def colours() -> ImageSet:
    return load_images(Data(name="digits", channels=3, image_size=(6, 10)), "test")


def loader(image_set: ImageSet, rows: slice = slice(None), batch: int = 12, **changes: Any) -> Loader:
    sampler = Sampler(len(image_set), batch, seed=3)
    options: dict[str, Any] = {"seed": 3, "device": CPU, "flip": False, "channels_last": True}
    return Loader(image_set, sampler, rank_slice=rows, **(options | changes))


def expected(image_set: ImageSet, rows: Tensor) -> Tensor:
    return (image_set.images[rows].double() / 127.5 - 1).float()


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_sampler_takes_every_image_once_per_epoch(batch_size: int) -> None:
    sampler = Sampler(10, batch_size, seed=0)
    order = torch.cat([sampler.indices(step) for step in range(50)])
    epochs = order[: len(order) // 10 * 10].view(-1, 10)
    assert torch.equal(epochs.sort(1).values, torch.arange(10).expand_as(epochs))


def test_sampler_orders_epochs_differently() -> None:
    sampler = Sampler(100, 100, seed=0)
    assert not torch.equal(sampler.indices(0), sampler.indices(1))


def test_sampler_orders_seeds_differently() -> None:
    assert not torch.equal(Sampler(100, 10, seed=0).indices(0), Sampler(100, 10, seed=1).indices(0))


def test_sampler_resumed_at_step_7_yields_the_same_batch() -> None:
    untouched = Sampler(50, 8, seed=1)
    for step in range(7):
        untouched.indices(step)
    assert torch.equal(untouched.indices(7), Sampler(50, 8, seed=1).indices(7))


def test_sampler_goes_back_to_an_earlier_epoch() -> None:
    sampler = Sampler(10, 4, seed=1)
    first = sampler.indices(0)
    sampler.indices(99)
    assert torch.equal(sampler.indices(0), first)


def test_sampler_batch_may_exceed_the_set() -> None:
    assert Sampler(3, 8, seed=0).indices(5).bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_sampler_of_nothing_is_refused() -> None:
    with pytest.raises(DataError) as raised:
        Sampler(0, 8, seed=0)
    assert str(raised.value) == (
        "a sampler needs images and a batch, got num_images=0, global_batch_size=8; both must be at least 1"
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_loader_gives_the_sampled_images_in_minus_one_to_one(colours: ImageSet, channels_last: bool) -> None:
    images, labels = loader(colours, channels_last=channels_last).batch(40)
    rows = Sampler(len(colours), 12, seed=3).indices(40)
    torch.testing.assert_close(images, expected(colours, rows), rtol=0, atol=1e-6)
    assert torch.equal(labels, colours.labels[rows])


def test_loader_reaches_exactly_both_ends_of_the_range(digits: ImageSet) -> None:
    images, _ = loader(digits).batch(0)
    assert (images.min(), images.max()) == (-1, 1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_loader_gives_the_asked_memory_layout(colours: ImageSet, channels_last: bool) -> None:
    images, _ = loader(colours, channels_last=channels_last, flip=True).batch(0)
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("world_size", [2, 4])
def test_loader_ranks_partition_the_flipped_global_batch(colours: ImageSet, world_size: int) -> None:
    whole, labels = loader(colours, flip=True).batch(5)
    share = 12 // world_size
    ranks = [loader(colours, slice(r * share, (r + 1) * share), flip=True).batch(5) for r in range(world_size)]
    assert torch.equal(torch.cat([images for images, _ in ranks]), whole)
    assert torch.equal(torch.cat([part for _, part in ranks]), labels)


def test_loader_flips_some_images_and_leaves_the_others(colours: ImageSet) -> None:
    plain, _ = loader(colours, batch=360).batch(0)
    flipped, _ = loader(colours, batch=360, flip=True).batch(0)
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    same = (flipped == plain).flatten(1).all(1)
    assert (mirrored | same).all()
    assert 120 < int((mirrored & ~same).sum()) < 240


def test_loader_flips_differently_at_each_step(digits: ImageSet) -> None:
    n = len(digits)
    flips = [(loader(digits, batch=n, flip=True).batch(s)[0] == loader(digits, batch=n).batch(s)[0]) for s in (0, 1)]
    assert not torch.equal(flips[0].flatten(1).all(1), flips[1].flatten(1).all(1))


@pytest.mark.parametrize("world_size", [2, 4])
def test_loader_ranks_partition_the_cropped_global_batch(colours: ImageSet, world_size: int) -> None:
    whole, _ = loader(colours, crop_padding=2).batch(5)
    share = 12 // world_size
    ranks = [loader(colours, slice(r * share, (r + 1) * share), crop_padding=2).batch(5) for r in range(world_size)]
    assert torch.equal(torch.cat([images for images, _ in ranks]), whole)


def test_loader_crops_are_windows_of_the_mirror_padded_image(colours: ImageSet) -> None:
    plain, _ = loader(colours, batch=360).batch(0)
    cropped, _ = loader(colours, batch=360, crop_padding=3).batch(0)
    windows = F.pad(plain, (3, 3, 3, 3), mode="reflect").unfold(2, 6, 1).unfold(3, 10, 1)  # (B, C, 7, 7, H, W)
    same = (windows == cropped[:, :, None, None]).all(dim=(1, 4, 5))  # (B, 7, 7)
    assert same.flatten(1).any(1).all()
    assert same.any(0).all(), "every one of the 49 shifts occurs"


def test_loader_leaves_the_image_set_alone(digits: ImageSet) -> None:
    before = digits.images.clone()
    loader(digits, batch=len(digits), flip=True).batch(0)
    assert torch.equal(digits.images, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [True, False])
def test_loader_on_a_gpu_equals_the_cpu(colours: ImageSet, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resident:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1))
    there, labels_there = loader(colours, device=torch.device("cuda")).batch(3)
    here, labels_here = loader(colours).batch(3)
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-6)
    assert torch.equal(labels_there.cpu(), labels_here)


def test_loader_reads_images_of_any_memory_layout(colours: ImageSet) -> None:
    other = ImageSet(
        images=colours.images.contiguous(),
        labels=colours.labels,
        classes=colours.classes,
        name="x",
        split="test",
        digest="",
        num_skipped=0,
    )
    assert torch.equal(loader(other).batch(3)[0], loader(colours).batch(3)[0])


def in_memory(file: Path, rows: list[int]) -> list[bool]:
    """Whether the system has the page of each row of one page."""
    seen = (ctypes.c_ubyte * (file.stat().st_size // mmap.PAGESIZE))()
    mapped = np.memmap(file, np.uint8, mode="r")
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(len(mapped)), seen) == 0
    return [bool(seen[row] & 1) for row in rows]


def test_images_of_the_next_step_are_in_memory_before_it_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a set that takes much memory, in a file that the system has forgotten."""
    file, side = tmp_path / "pixels", round(mmap.PAGESIZE**0.5)
    file.write_bytes(os.urandom(4000 * mmap.PAGESIZE))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(in_memory(file, list(range(4000)))):
        pytest.skip("temporary files are in memory here")
    monkeypatch.setattr("genray.data.sampler.ASK_AHEAD_FROM", file.stat().st_size)
    pixels = torch.from_numpy(np.memmap(file, np.uint8, mode="c", shape=(4000, side, side, 1))).permute(0, 3, 1, 2)
    labels = torch.zeros(4000, dtype=torch.int64)
    images = ImageSet(images=pixels, labels=labels, classes=("a",), name="x", split="train", digest="", num_skipped=0)
    order = Sampler(4000, 12, seed=3)
    loader(images).batch(0)
    wanted = order.indices(1).tolist()
    deadline = time.monotonic() + 10
    while not all(in_memory(file, wanted)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(in_memory(file, wanted))
    assert sum(in_memory(file, order.indices(2).tolist())) <= 1 and sum(in_memory(file, list(range(4000)))) < 100

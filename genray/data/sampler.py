"""Which images a step takes, and those images on the device, in [-1, 1]."""

import ctypes
import mmap

import torch
from torch import Tensor

from genray import streams
from genray.data.images import ImageSet
from genray.errors import DataError

_LIBC = ctypes.CDLL(None)
ASK_AHEAD_FROM = 1 << 28
"""Bytes of a set that may not stay in memory: the system is told which pages of its file the next step reads."""


class Sampler:
    """An endless order of images: each epoch a seeded permutation, cut into batches across its borders.

    A pure function of (seed, step): nothing to save, any step may come first.
    """

    def __init__(self, num_images: int, global_batch_size: int, seed: int) -> None:
        if num_images < 1 or global_batch_size < 1:
            raise DataError(
                f"a sampler needs images and a batch, got num_images={num_images!r}, "
                f"global_batch_size={global_batch_size!r}; both must be at least 1"
            )
        self.num_images = num_images
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._latest = (-1, torch.empty(0, dtype=torch.int64))

    def indices(self, step: int) -> Tensor:
        """Positions of the images of `step` (from 0) over all ranks, (global_batch_size,) int64 on the CPU."""
        position = step * self.global_batch_size
        stop = position + self.global_batch_size
        pieces: list[Tensor] = []
        while position < stop:
            epoch, offset = divmod(position, self.num_images)
            piece = self._order(epoch)[offset : offset + stop - position]
            pieces.append(piece)
            position += len(piece)
        return torch.cat(pieces)

    def _order(self, epoch: int) -> Tensor:
        """The permutation of `epoch`; the latest one is kept."""
        latest, order = self._latest
        if epoch != latest:
            order = torch.randperm(self.num_images, generator=streams.generator(self.seed, "order", epoch))
            self._latest = (epoch, order)
        return order


class Loader:
    """One rank's share of every batch, on `device`.

    A set that takes less than a quarter of the GPU's free memory is copied there once, as uint8; a
    larger one stays where it is, and the share of each step is gathered on the host and sent. A set larger than
    memory stays in its file, of which the system keeps what fits; the images of a step are asked for a step ahead.
    """

    def __init__(
        self,
        image_set: ImageSet,
        sampler: Sampler,
        *,
        seed: int,
        rank_slice: slice,
        device: torch.device,
        flip: bool,
        channels_last: bool,
        crop_padding: int = 0,
    ) -> None:
        self._sampler = sampler
        self._start, self._stop, _ = rank_slice.indices(sampler.global_batch_size)
        self._seed = streams.derive_seed(seed, "data")
        self._device = device
        self._flip = flip
        self._crop_padding = crop_padding
        self._channels_last = channels_last
        pixels = image_set.images.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C), as load_images has it
        self._pixels = pixels.to(device) if _fits(pixels, device) else pixels
        self._labels = image_set.labels.to(device)
        self._ahead = self._pixels.device.type == "cpu" and pixels.nbytes >= ASK_AHEAD_FROM
        if self._ahead:
            _advise(self._pixels, mmap.MADV_RANDOM)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 in [-1, 1] and labels (B,) of this rank at `step`.

        With `flip`, each image is mirrored with probability 1/2, and with `crop_padding` shifted by up to so
        many pixels in each direction, by draws for the global batch: they do not depend on the number of ranks.
        """
        share = self._sampler.indices(step)[self._start : self._stop]
        here = _send(share, self._device)
        if self._pixels.device == share.device:
            pixels = _send(_gather(self._pixels, share, pinned=self._device.type == "cuda"), self._device)
        else:
            pixels = self._pixels.index_select(0, here)
        if self._ahead:
            for row in self._sampler.indices(step + 1)[self._start : self._stop].tolist():
                _advise(self._pixels[row], mmap.MADV_WILLNEED)
        if self._flip:
            pixels = _mirror(pixels, self._draws(step).uniform("flip") < 0.5)
        if self._crop_padding:
            pixels = _crop(pixels, self._crop_padding, self._draws(step))
        return normalise(pixels, channels_last=self._channels_last), self._labels.index_select(0, here)

    def _draws(self, step: int) -> streams.Draws:
        return streams.Draws(
            seed=self._seed,
            step=step,
            num_global=self._sampler.global_batch_size,
            start=self._start,
            stop=self._stop,
            device=self._device,
        )


def _advise(pixels: Tensor, advice: int) -> None:
    """Tells the system how the pages of `pixels` will be read; it need not listen."""
    page = mmap.PAGESIZE
    start = pixels.data_ptr() // page * page
    length = pixels.data_ptr() + pixels.nbytes - start
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def normalise(pixels: Tensor, *, channels_last: bool) -> Tensor:
    """float32 (B, C, H, W) in [-1, 1] of uint8 pixels (B, H, W, C); 0 gives exactly -1, 255 exactly 1."""
    images = pixels.permute(0, 3, 1, 2)
    if not channels_last:
        images = images.contiguous()
    return images.float().sub_(127.5).div_(127.5)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes < free / 4


def _gather(pixels: Tensor, rows: Tensor, *, pinned: bool) -> Tensor:
    """`pixels[rows]`, in memory that a GPU reads without a copy in between if `pinned`."""
    if not pinned:
        return pixels.index_select(0, rows)
    out = torch.empty((len(rows), *pixels.shape[1:]), dtype=pixels.dtype, pin_memory=True)
    return torch.index_select(pixels, 0, rows, out=out)


def _send(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` on `device`, without waiting for it."""
    if device.type != "cuda":
        return rows.to(device)
    return (rows if rows.is_pinned() else rows.pin_memory()).to(device, non_blocking=True)


def _crop(pixels: Tensor, padding: int, draws: streams.Draws) -> Tensor:
    """`pixels` (B, H, W, C), each image a random crop of itself with `padding` mirrored pixels on every side."""
    shifts = draws.integers("crop", 2 * padding + 1, 2) - padding
    rows, columns = (
        _reflected(torch.arange(side, device=pixels.device) + shift[:, None], side)
        for side, shift in zip(pixels.shape[1:3], shifts.unbind(1), strict=True)
    )
    images = torch.arange(len(pixels), device=pixels.device)
    return pixels[images[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(positions: Tensor, side: int) -> Tensor:
    """Positions beyond 0 and `side` - 1 thrown back, the border itself not repeated."""
    last = side - 1
    return last - (last - positions.abs()).abs()


def _mirror(pixels: Tensor, chosen: Tensor) -> Tensor:
    """`pixels` (B, H, W, C), written to, with the images `chosen` (B,) mirrored left to right."""
    if pixels.is_cuda:  # a count of the chosen would be a host sync
        return torch.where(chosen[:, None, None, None], pixels.flip(2), pixels)
    rows = chosen.nonzero().flatten()
    return pixels.index_copy_(0, rows, pixels.index_select(0, rows).flip(2))

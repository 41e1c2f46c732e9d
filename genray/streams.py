"""Random numbers as a pure function of (seed, stream, step), drawn for the global batch.

Every rank draws the numbers of the whole batch and keeps its slice, so one rank and four ranks
see the same latents, and a restart at any step draws what the first run drew.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed that depends on all three; equal on every machine and Python version."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the start of the stream `(seed, stream, step)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, step))


def seed_default(seed: int, device: torch.device) -> None:
    """Seeds the generators that take no argument, such as dropout's, of the CPU and of `device`.

    `torch.manual_seed` would do so for every kind of device that torch knows; for those that have not been
    used it keeps a stack trace instead, which costs more than a small network's optimiser.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one step, as one rank sees them.

    Numbers are drawn on `device`: CPU and CUDA streams differ, worlds of any size on one kind of
    device agree. Drawing twice from one stream name gives the same numbers twice.
    """

    seed: int
    step: int
    num_global: int
    start: int
    stop: int
    device: torch.device

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers of `stream`, (stop - start, *shape)."""
        source = generator(self.seed, stream, self.step, self.device)
        return torch.randn(self.num_global, *shape, generator=source, device=self.device)[self.start : self.stop]

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Numbers in [0, 1) of `stream`, (stop - start, *shape)."""
        source = generator(self.seed, stream, self.step, self.device)
        return torch.rand(self.num_global, *shape, generator=source, device=self.device)[self.start : self.stop]

    def integers(self, stream: str, high: int, *shape: int) -> Tensor:
        """Whole numbers in [0, high) of `stream`, (stop - start, *shape), int64."""
        source = generator(self.seed, stream, self.step, self.device)
        draws = torch.randint(high, (self.num_global, *shape), generator=source, device=self.device)
        return draws[self.start : self.stop]

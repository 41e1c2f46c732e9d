"""Random numbers as a function of (seed, stream, step)."""

import torch

from genray.streams import Draws, derive_seed, seed_default


def test_default_generators_are_seeded_as_torch_would_seed_them() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    seed_default(7, torch.device("cpu"))
    assert torch.equal(torch.rand(3), wanted)


def test_ranks_draw_slices_of_one_global_batch() -> None:
    def draws(start: int, stop: int) -> Draws:
        return Draws(seed=3, step=5, num_global=6, start=start, stop=stop, device=torch.device("cpu"))

    whole = draws(0, 6).normal("latents", 4)
    assert torch.equal(torch.cat([draws(0, 2).normal("latents", 4), draws(2, 6).normal("latents", 4)]), whole)


def test_seeds_differ_by_seed_stream_and_step() -> None:
    assert len({derive_seed(*of) for of in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]}) == 4

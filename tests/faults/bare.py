"""The training loop alone, of one or more gloo ranks, without Ray and MLflow: RANKS POISON PRESET [--FIELD VALUE …].

POISON is `none`, or KIND:RANK:STEP: at that step the rank has a NaN in its gradient (`gradient`), or infinite
pixels (`data`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from ranks import run_ranks

from genray import cli, trainer
from genray.config import Config
from genray.data.images import load_images
from genray.distributed import current
from genray.paths import resolved
from genray.storage import RunFolder


def poisoned(kind: str, rank: int, step: int) -> type[trainer.Trainer]:
    """A trainer that has a bad number at one step of one rank."""

    class Poisoned(trainer.Trainer):
        def update(self) -> None:
            here = (self.world.rank, self.step) == (rank, step)
            with getattr(self, kind)() if here else nullcontext():
                super().update()

        @contextmanager
        def gradient(self) -> Iterator[None]:
            weight = next(self.product.parameters())
            hook: Any = weight.register_hook(lambda gradient: gradient * float("nan"))
            yield
            hook.remove()

        @contextmanager
        def data(self) -> Iterator[None]:
            batch = self.loader.batch
            bad = torch.tensor([float("inf")])
            self.loader.batch = lambda at: (batch(at)[0] * bad, batch(at)[1])  # type: ignore[method-assign]
            yield
            self.loader.batch = batch  # type: ignore[method-assign]

    return Poisoned


def one_rank(config: Config, poison: str) -> None:
    torch.set_num_threads(1)
    if poison != "none":
        kind, rank, step = poison.split(":")
        trainer.Trainer = poisoned(kind, int(rank), int(step))  # type: ignore[misc]
    folder = RunFolder.open(config.run.storage, config.run.name)
    trainer.train(config, load_images(config.data, "train"), folder, current(False))


if __name__ == "__main__":
    ranks, poison = int(sys.argv[1]), sys.argv[2]
    config = resolved(cli.parse_run(sys.argv[3:], "faults.bare")[0])
    if ranks > 1:
        run_ranks(one_rank, ranks, config, poison)
    else:
        sys.exit(cli.guarded(lambda: one_rank(config, poison) or 0))

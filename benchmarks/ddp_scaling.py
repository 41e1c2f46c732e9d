"""What averaging gradients costs: two DDP ranks against the same two that do not talk.

Two gloo ranks of one thread each train DCGAN at 32 pixels (width 64, RGB) with 64 images a rank. Each
holds two trainers: a usual one, and one made while `distributed.wrap` was the identity, which is the
most that two such ranks can do. The trainers take turns in both ranks at once; the seconds of a turn
are the mean over ranks. `ratio` is the speed of the first over that of the second.
"""

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from remote import Desk, serve
from trainers import Steps, dcgan, smooth_images, trainer
from turns import Side, compare, conditions, finish, parser, say

from genray import distributed
from genray.config import Cluster

SIZE, IMAGES_PER_RANK, RANKS, NUM_IMAGES = 32, 64, 2, 4000
GOAL = 0.90


def rank(number: int, precision: str, folder: Path, address: str) -> None:
    """One of the processes: both trainers, at the desk's service."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=RANKS)
    world = distributed.current(use_gpu=False)
    run = dcgan(SIZE, precision, RANKS * IMAGES_PER_RANK, Cluster(num_workers=RANKS))
    images = smooth_images(NUM_IMAGES, run.data.image_shape)
    averaged = trainer(run, images, folder / "averaged", world)
    with mock.patch.object(distributed, "wrap", lambda module: module):
        alone = trainer(run, images, folder / "alone", world)
    serve(f"rank {number}", {"averaged": Steps(averaged).run, "alone": Steps(alone).run}, address)
    dist.destroy_process_group()


def measure(precision: str, options: argparse.Namespace) -> dict[str, float]:
    """Ratio at one precision."""
    spawn = multiprocessing.get_context("spawn")
    desk, names = Desk(), tuple(f"rank {number}" for number in range(RANKS))
    with tempfile.TemporaryDirectory() as folder:
        ranks = [spawn.Process(target=rank, args=(n, precision, Path(folder), desk.address)) for n in range(RANKS)]
        for process in ranks:
            process.start()
        desk.wait_for(*names)
        averaged = Side("averaged", desk.run(names, "averaged"))
        found = compare(averaged, Side("alone", desk.run(names, "alone")), options)
        desk.close()
        for process in ranks:
            process.join()
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = made.parse_args()
    options.threads = 1
    found = measure(options.precision, options)
    say(f"{found} (goal {GOAL})")
    setting = {"size": SIZE, "precision": options.precision, "images_per_rank": IMAGES_PER_RANK, "ranks": RANKS}
    finish("ddp_scaling", setting | found | conditions(options))


if __name__ == "__main__":
    main()

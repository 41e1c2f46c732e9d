"""Training a DCGAN: genray's trainer against the loop that tutorials teach.

Both train the very same networks (batch norm in both, width 64, RGB) at equal batch and Adam settings
on the same images. The tutorial's loop reads PIL images through ToTensor, Normalize and a DataLoader
of two workers, computes in contiguous fp32, takes real and fake backward passes, and reads five
numbers per step for a line of print (to the null device). genray's side is `Trainer.update` and `log`
with everything that they do: EMA, metrics, gradient norms, guards, journal. Each side lives in a process
of its own, since genray's keeps freed memory and the tutorial's does not.

bf16 is genray's autocast against the same fp32 loop.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from remote import processes, serve
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from trainers import Steps, dcgan, smooth_images, trainer
from turns import Side, compare, conditions, finish, parser, say, timed

from genray.config import Config
from genray.data.images import ImageSet

NUM_IMAGES = 20_000
BATCH = {32: 128, 64: 64}
GOALS = {"fp32": 1.25, "bf16": 1.9}


class Pictures(Dataset[Tensor]):
    """PIL images, transformed one by one, as a torchvision data set has them."""

    def __init__(self, images: ImageSet) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).numpy()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.fromarray(self.pixels[index]))
        return image


def tutorial_steps(run: Config, images: ImageSet) -> Iterator[None]:
    """The tutorial's loop, stopping after each step; it never ends."""
    torch.manual_seed(run.train.seed)
    networks = run.model.build(run.data.image_shape, 1)
    generator, discriminator = networks["generator"], networks["discriminator"]
    adam = {"lr": run.optim.lr, "betas": run.optim.betas}
    generator_optimizer = torch.optim.Adam(generator.parameters(), **adam)  # type: ignore[arg-type]
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), **adam)  # type: ignore[arg-type]
    criterion = nn.BCEWithLogitsLoss()
    loader = DataLoader(Pictures(images), batch_size=run.train.global_batch_size, shuffle=True, num_workers=2)
    nowhere = open(os.devnull, "w")
    epoch = 0
    while True:
        for index, reals in enumerate(loader):
            ones, zeros = torch.ones(len(reals)), torch.zeros(len(reals))
            discriminator.zero_grad()
            logits = discriminator(reals)
            loss_reals = criterion(logits, ones)
            loss_reals.backward()
            on_reals = torch.sigmoid(logits).mean().item()
            fakes = generator(torch.randn(len(reals), 100))
            logits = discriminator(fakes.detach())
            loss_fakes = criterion(logits, zeros)
            loss_fakes.backward()
            on_fakes = torch.sigmoid(logits).mean().item()
            discriminator_loss = loss_reals + loss_fakes
            discriminator_optimizer.step()
            generator.zero_grad()
            logits = discriminator(fakes)
            generator_loss = criterion(logits, ones)
            generator_loss.backward()
            after = torch.sigmoid(logits).mean().item()
            generator_optimizer.step()
            print(
                f"[{epoch}][{index}/{len(loader)}] discriminator {discriminator_loss.item():.4f} "
                f"generator {generator_loss.item():.4f} reals {on_reals:.4f} fakes {on_fakes:.4f} / {after:.4f}",
                file=nowhere,
            )
            yield
        epoch += 1


def measure(size: int, precision: str, options: argparse.Namespace) -> dict[str, float]:
    """Ratio at one size and precision."""
    arguments = ["--sizes", str(size), "--precisions", precision, "--threads", str(options.threads)]
    with processes(("genray", "tutorial"), *arguments) as (desk, _):
        desk.wait_for("genray", "tutorial")
        ours = Side(f"genray {size}px {precision}", desk.run(("genray",), "train"))
        return compare(ours, Side("tutorial", desk.run(("tutorial",), "train")), options)


def side(name: str, size: int, precision: str) -> None:
    """The process of one side."""
    run = dcgan(size, precision, BATCH[size])
    images = smooth_images(NUM_IMAGES, run.data.image_shape)
    with tempfile.TemporaryDirectory() as folder:
        if name == "genray":
            serve(name, {"train": Steps(trainer(run, images, Path(folder))).run})
        else:
            steps = tutorial_steps(run, images)
            serve(name, {"train": timed(lambda: next(steps))})


def main() -> None:
    made = parser(__doc__)
    made.add_argument(
        "--sizes", type=int, nargs="+", choices=sorted(BATCH), default=sorted(BATCH), help="pixels a side"
    )
    made.add_argument("--precisions", nargs="+", choices=tuple(GOALS), default=list(GOALS))
    made.add_argument("--process", choices=("genray", "tutorial"), help=argparse.SUPPRESS)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    if options.process:
        side(options.process, *options.sizes, *options.precisions)
        return
    figures: dict[str, object] = {}
    for size in options.sizes:
        for precision in options.precisions:
            found = measure(size, precision, options)
            say(f"{size}px {precision}: {found} (goal {GOALS[precision]})")
            figures |= {f"dcgan_{size}px_{precision}_{key}": value for key, value in found.items()}
    finish("train_throughput", figures | conditions(options, "torchvision"))


if __name__ == "__main__":
    main()

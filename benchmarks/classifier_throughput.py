"""Training a classifier: genray's trainer against the usual torchvision training script.

Both train the very same ResNet-18 (width 32) at equal batch and AdamW settings on the same 32 x 32 images,
with random crops of padded images, flips and normalisation. The usual script does these by torchvision's
transforms, image by image, in a DataLoader of two workers, computes in contiguous fp32, and reads loss and
accuracy as often as genray logs. genray's side is `Trainer.update` and `log` with everything that they do:
EMA, metrics, gradient norms, guards, journal. Each side lives in a process of its own.

bf16 is genray's autocast against the same fp32 script.
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
from trainers import LOG_EVERY, Steps, smooth_images, trainer
from turns import Side, compare, conditions, finish, parser, say, timed

from genray.config import Config, Data, Optim, Train
from genray.data.images import ImageSet
from genray.models.torchvision_resnet import TorchvisionResNet
from genray.objectives.classification import Classification

NUM_IMAGES, NUM_CLASSES, SIDE, BATCH = 20_000, 10, 32, 128
GOALS = {"fp32": 1.2, "bf16": 1.8}


def classifier(precision: str) -> Config:
    """The run of both sides."""
    return Config(
        data=Data(name="cifar10", flip=True, crop_padding=4),
        model=TorchvisionResNet(width=32),
        objective=Classification(label_smoothing=0.1),
        optim=Optim(name="adamw", lr=2e-3, weight_decay=0.05),
        train=Train(
            num_steps=10**6,
            global_batch_size=BATCH,
            log_every=LOG_EVERY,
            sample_every=0,
            checkpoint_every=10**6,
            precision=precision,  # type: ignore[arg-type]
        ),
    )


def labelled_images() -> ImageSet:
    """Images in memory, of as many classes as CIFAR-10 has."""
    plain = smooth_images(NUM_IMAGES, (3, SIDE, SIDE))
    classes = tuple(map(str, range(NUM_CLASSES)))
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    return ImageSet(plain.images, labels, classes, "smooth", "train", digest=plain.digest, num_skipped=0)


class Pictures(Dataset[tuple[Tensor, int]]):
    """PIL images and classes, transformed one by one, as a torchvision data set has them."""

    def __init__(self, images: ImageSet) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).numpy()
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIDE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def usual_steps(run: Config, images: ImageSet) -> Iterator[None]:
    """The usual script's loop, stopping after each step; it never ends."""
    torch.manual_seed(run.train.seed)
    network = run.model.build(run.data.image_shape, NUM_CLASSES)["classifier"].train()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=run.optim.lr, weight_decay=run.optim.weight_decay)
    loader = DataLoader(Pictures(images), batch_size=BATCH, shuffle=True, num_workers=2, drop_last=True)
    nowhere = open(os.devnull, "w")
    while True:
        for index, (pixels, labels) in enumerate(loader):
            output = network(pixels)
            loss = criterion(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if index % LOG_EVERY == 0:
                right = (output.argmax(1) == labels).float().mean()
                print(f"[{index}/{len(loader)}] loss {loss.item():.4f} accuracy {right.item():.4f}", file=nowhere)
            yield


def measure(precision: str, options: argparse.Namespace) -> dict[str, float]:
    """Ratio at one precision."""
    arguments = ["--precisions", precision, "--threads", str(options.threads)]
    with processes(("genray", "torchvision"), *arguments) as (desk, _):
        desk.wait_for("genray", "torchvision")
        ours = Side(f"genray {precision}", desk.run(("genray",), "train"))
        return compare(ours, Side("torchvision", desk.run(("torchvision",), "train")), options)


def side(name: str, precision: str) -> None:
    """The process of one side."""
    run, images = classifier(precision), labelled_images()
    with tempfile.TemporaryDirectory() as folder:
        if name == "genray":
            serve(name, {"train": Steps(trainer(run, images, Path(folder))).run})
        else:
            steps = usual_steps(run, images)
            serve(name, {"train": timed(lambda: next(steps))})


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--precisions", nargs="+", choices=tuple(GOALS), default=list(GOALS))
    made.add_argument("--process", choices=("genray", "torchvision"), help=argparse.SUPPRESS)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    if options.process:
        side(options.process, *options.precisions)
        return
    figures: dict[str, object] = {}
    for precision in options.precisions:
        found = measure(precision, options)
        say(f"{precision}: {found} (goal {GOALS[precision]})")
        figures |= {f"resnet18_{precision}_{key}": value for key, value in found.items()}
    finish("classifier_throughput", figures | conditions(options, "torchvision"))


if __name__ == "__main__":
    main()

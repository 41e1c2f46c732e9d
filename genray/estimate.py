"""What a run will need, before it is started."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from genray import cpu
from genray.checkpoint import NullStore
from genray.config import Config, per_rank_batch_size
from genray.data import DATASETS
from genray.data.images import ImageSet
from genray.distributed import World
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

UNKNOWN_CLASSES = 10


def num_parameters(config: Config) -> dict[str, int]:
    """Trainable parameters of each module."""
    return {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in _built(config).items()
    }


def memory_mb(config: Config) -> dict[str, int]:
    """Estimated device memory of one worker, in MiB, by what it is for.

    `activations` counts the outputs of every layer of every module once forward; a framework keeps
    about as much again for the backward pass.
    """
    modules = _built(config)
    count = sum(num_parameters(config).values())
    product = sum(p.numel() for p in modules[config.objective.product].parameters())
    batch = per_rank_batch_size(config.train.global_batch_size, max(1, config.cluster.num_workers))
    size = 2 if config.train.precision == "bf16" else 4
    sizes = {
        "weights, gradients and moments": 16 * count,
        "ema": 4 * product,
        "activations": 2 * size * batch * sum(_outputs(module, config) for module in modules.values()),
    }
    found = {name: -(-value // 2**20) for name, value in sizes.items()}
    return found | {"total": sum(found.values())}


def seconds_per_step(config: Config, num_steps: int = 5) -> float:
    """Seconds of a step of one worker with its share of the batch, measured here on images of noise.

    The steps that are taken lie evenly over the run: values that move may make its end slower than its beginning.
    """
    num = per_rank_batch_size(config.train.global_batch_size, max(1, config.cluster.num_workers))
    classes = tuple(map(str, range(DATASETS[config.data.name].num_classes or UNKNOWN_CLASSES)))
    noise = torch.randint(256, (4 * num, *config.data.image_shape), dtype=torch.uint8)
    images = ImageSet(noise, torch.arange(4 * num) % len(classes), classes, "noise", "train", digest="", num_skipped=0)
    alone = replace(
        config,
        train=replace(config.train, global_batch_size=num),
        cluster=replace(config.cluster, num_workers=0, use_gpu=False),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    with cpu.prepared(), tempfile.TemporaryDirectory() as folder:
        here = World(0, 1, torch.device("cpu"))
        trainer = Trainer(alone, images, RunFolder(Path(folder)), store=NullStore(), tracker=NullTracker(), world=here)
        for _ in range(2):
            trainer.update()
        total = config.train.num_steps * config.train.global_batch_size // num
        began = time.perf_counter()
        for i in range(num_steps):
            trainer.step = (2 * i + 1) * total // (2 * num_steps) + i  # one after the other of a cycle of phases
            trainer.update()
        took = time.perf_counter() - began
    torch.set_num_threads(before)
    return took / num_steps


def _built(config: Config) -> dict[str, nn.Module]:
    num_classes = DATASETS[config.data.name].num_classes or UNKNOWN_CLASSES
    with torch.device("meta"):
        return config.model.build(config.data.image_shape, num_classes)


def _outputs(module: nn.Module, config: Config) -> int:
    """Numbers that the layers of `module` put out for one image."""
    total = 0

    def count(layer: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor) and not list(layer.children()):
            total += output[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    images = torch.empty(2, *config.data.image_shape, device="meta")
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    latent = getattr(module, "latent_dim", None)
    noise = torch.empty(2, latent, device="meta") if latent is not None else None
    if hasattr(module, "encode") and noise is not None:
        module(images, noise, labels if module.num_labels else None)
    elif hasattr(module, "encode"):
        module(images)
    elif hasattr(module, "codes") and noise is not None:
        module(noise.long(), labels)
    elif noise is not None:
        module(noise, labels)
    elif hasattr(module, "features"):
        module(images)
    else:
        module(images, labels)
    for hook in hooks:
        hook.remove()
    return total

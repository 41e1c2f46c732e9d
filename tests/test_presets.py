"""Every preset trains: two steps of it, with narrow networks and a small batch."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluation_snapshots as snapshots
import pytest
import torch

from genray.checkpoint import NullStore
from genray.config import Cluster, Config
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models.tokenizer import Tokenizer
from genray.objectives.tokenizer import Tokenization
from genray.presets import PRESETS, preset
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

NARROW = {"group_width": 2, "style_dim": 8, "hidden": 16}


def shrunk(config: Config) -> Config:
    """The same run with few channels and eight images a step."""
    model: Any = config.model
    widths = {f.name: 4 for f in dataclasses.fields(model) if f.name.endswith("width")}
    narrow = {name: value for name, value in NARROW.items() if hasattr(model, name)}
    return replace(
        config,
        model=replace(model, **(widths | narrow)),
        train=replace(config.train, global_batch_size=8),
        cluster=Cluster(num_workers=0),
    )


def save_tokenizer(directory: Path, config: Config) -> Path:
    """A snapshot of the tokenizer that a transformer over codes can start from."""
    knobs: Any = config.model
    model = Tokenizer(**{f.name: getattr(knobs, f.name) for f in dataclasses.fields(Tokenizer)})
    return snapshots.save(directory, model, Tokenization(), data=config.data)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_takes_two_steps_that_move_every_weight_to_finite_values(name: str, tmp_path: Path) -> None:
    config = shrunk(preset(name))
    if config.transfer.source:
        source = str(save_tokenizer(tmp_path / "tokenizer", config))
        config = replace(config, transfer=replace(config.transfer, source=source))
    noise = torch.randint(256, (16, *config.data.image_shape), dtype=torch.uint8, generator=torch.Generator())
    images = ImageSet(noise, torch.arange(16) % 10, tuple("0123456789"), "noise", "train", digest="", num_skipped=0)
    world = World(0, 1, torch.device("cpu"))
    steps = 2 * max(phase.every for phase in config.objective.phases)
    trainer = Trainer(config, images, RunFolder(Path("unused")), store=NullStore(), tracker=NullTracker(), world=world)
    before = torch.cat([p.detach().flatten() for p in trainer.product.parameters()])
    for _ in range(steps):
        trainer.update()
    after = torch.cat([p.detach().flatten() for p in trainer.product.parameters()])
    values = trainer.meter.collect()
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert after.isfinite().all() and (after != before).float().mean() > 0.5

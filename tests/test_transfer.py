"""What a classifier takes of other networks, and how far that may move afterwards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import tiny_config
from evaluation_snapshots import save_classifier
from torch import nn

from genray.config import Config, Data, Optim, Train
from genray.data.images import ImageSet
from genray.distributed import current
from genray.errors import CheckpointError, ConfigError
from genray.models.dcgan import DCGANClassifier
from genray.models.resnet import ResNetClassifier
from genray.models.torchvision_resnet import TorchvisionResNet
from genray.objectives.classification import Classification
from genray.start import build_networks, read_weights
from genray.storage import RunFolder
from genray.trainer import train
from genray.transfer import Transfer, take

RESNET = ResNetClassifier(width=8, num_stages=2)


def classifier_config(model: Any = RESNET, num_steps: int = 4, **transfer: Any) -> Config:
    return Config(
        data=Data(name="digits"),
        model=model,
        objective=Classification(),
        optim=Optim(name="adamw", lr=1e-2, weight_decay=0.1),
        transfer=Transfer(**transfer),
        train=Train(
            num_steps=num_steps, global_batch_size=16, checkpoint_every=2, log_every=2, sample_every=0, ema_half_life=0
        ),
    )


def trained(config: Config, digits: ImageSet, folder: Path) -> dict[str, torch.Tensor]:
    train(config, digits, RunFolder.open(str(folder), "run"), current(use_gpu=False))
    step = sorted((folder / "run" / "checkpoints").iterdir())[-1]
    return {
        name.removeprefix("modules/classifier/"): t for name, t in read_weights(step)[0].items() if "modules" in name
    }


def started(config: Config, digits: ImageSet, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    built = build_networks(config, digits, RunFolder.open(str(folder), "run"))["classifier"]
    return dict(built.state_dict())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = save_classifier(tmp_path_factory.mktemp("transfer") / "snapshot", seed=5)
    return directory


def test_transfer_takes_a_snapshot_whole(source: Path, digits: ImageSet, tmp_path: Path) -> None:
    found = started(classifier_config(source=str(source)), digits, tmp_path)
    assert all(torch.equal(found[name], value) for name, value in read_weights(source)[0].items())


def test_transfer_takes_torchvision_weights_but_for_a_head_of_other_classes(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "resnet18.pth")
    tensors, digest = read_weights(tmp_path / "resnet18.pth")
    module = TorchvisionResNet().build((3, 32, 32), 7)["classifier"]
    with pytest.raises(CheckpointError, match=r"conv1\.weight \(64, 3, 3, 3\) against \(64, 3, 7, 7\)"):
        take(module, tensors, "resnet18.pth")
    module = TorchvisionResNet(stem="large").build((3, 32, 32), 5)["classifier"]
    fit = take(module, tensors, "resnet18.pth")
    assert set(fit.left) == {"fc.weight", "fc.bias"} and len(digest) == 64
    assert set(fit.new) == {"fc.weight", "fc.bias", "standardise.mean", "standardise.std"}
    assert torch.equal(module.state_dict()["layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"])


def test_transfer_takes_the_discriminator_of_a_gan(digits: ImageSet, tmp_path: Path) -> None:
    gan = tiny_config(train=Train(num_steps=2, global_batch_size=16, checkpoint_every=2, sample_every=0))
    train(gan, digits, RunFolder.open(str(tmp_path), "gan"), current(use_gpu=False))
    (place,) = (tmp_path / "gan" / "checkpoints").iterdir()
    model = DCGANClassifier(width=8, discriminator_norm="none")
    found = started(classifier_config(model, source=str(place)), digits, tmp_path)
    tensors, _ = read_weights(place)
    layers = [name for name in found if name.startswith("layers.")]
    assert layers and all(torch.equal(found[n], tensors[f"modules/discriminator/{n}"]) for n in layers)


def test_transfer_from_another_architecture_names_tensors_and_changes_nothing(source: Path) -> None:
    module = ResNetClassifier(width=4, num_stages=2).build((1, 8, 8), 10)["classifier"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        take(module, read_weights(source)[0], "x")
    assert "transfer.source='x' is of another architecture" in str(caught.value)
    assert "layers.0.0.weight (4, 1, 3, 3) against (8, 1, 3, 3)" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("name", "content"), [("w.pth", b"junk"), ("w.safetensors", b"junk"), ("none.pth", None)])
def test_transfer_from_what_is_no_weights_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read as weights .*give a \.pth or \.safetensors file"):
        read_weights(tmp_path / name)


def test_linear_probe_moves_the_head_alone(source: Path, digits: ImageSet, tmp_path: Path) -> None:
    config = classifier_config(source=str(source), trunk_lr=0.0)
    before, after = started(config, digits, tmp_path), trained(config, digits, tmp_path)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_trunk_lr_slows_the_trunk_by_its_factor(source: Path, digits: ImageSet, tmp_path: Path) -> None:
    moves = []
    for factor in (1.0, 0.1):
        config = classifier_config(source=str(source), num_steps=1, trunk_lr=factor)
        after = trained(config, digits, tmp_path / str(factor))
        moves.append({n: after[n] - t for n, t in read_weights(source)[0].items()})
    name = "layers.2.first.0.weight"
    torch.testing.assert_close(moves[1][name], 0.1 * moves[0][name], rtol=1e-2, atol=1e-5)
    assert moves[0][name].abs().max() > 1e-3


def test_thawing_begins_with_the_last_stage(source: Path, digits: ImageSet, tmp_path: Path) -> None:
    start = read_weights(source)[0]
    weights = ("layers.0.0.weight", "layers.2.first.0.weight", "layers.3.first.0.weight", "head.weight")
    moved = {}
    for steps in (1, 2, 3, 4):
        config = classifier_config(source=str(source), num_steps=steps, thaw_samples=16)
        after = trained(config, digits, tmp_path / str(steps))
        moved[steps] = [not torch.equal(after[name], start[name]) for name in weights]
    assert moved == {
        1: [False, False, False, True],
        2: [False, False, True, True],
        3: [False, True, True, True],
        4: [True, True, True, True],
    }


def test_resumed_thawing_ends_with_the_weights_of_a_run_untouched(
    source: Path, digits: ImageSet, tmp_path: Path
) -> None:
    config = classifier_config(source=str(source), num_steps=4, thaw_samples=16, trunk_lr=0.5)
    whole = trained(config, digits, tmp_path / "whole")
    trained(replace(config, train=replace(config.train, num_steps=2)), digits, tmp_path / "parts")
    parts = trained(config, digits, tmp_path / "parts")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_transfer_is_refused_for_networks_without_stages(digits: ImageSet, tmp_path: Path) -> None:
    config = tiny_config(transfer=Transfer(trunk_lr=0.1))
    with pytest.raises(
        ConfigError,
        match=r"transfer\.\* is for classifiers, code-transformer and latent-flow, and Discriminator has no stages",
    ):
        train(config, digits, RunFolder.open(str(tmp_path), "run"), current(use_gpu=False))


def test_transfer_refuses_to_thaw_what_is_frozen_for_good() -> None:
    with pytest.raises(ConfigError, match=r"thaw_samples=10 of a trunk that is frozen"):
        Transfer(trunk_lr=0.0, thaw_samples=10)


@pytest.mark.parametrize("model", [RESNET, DCGANClassifier(width=4), TorchvisionResNet(width=4, hidden=3)])
def test_stages_are_the_network_and_its_head_comes_last(model: Any) -> None:
    module: Any = model.build((1, 8, 8), 6)["classifier"]
    held = [id(p) for stage in module.stages for part in stage for p in part.parameters()]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
    assert [m.out_features for m in module.stages[-1] if isinstance(m, nn.Linear)][-1] == 6

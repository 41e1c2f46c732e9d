"""ResNets with torchvision's weights: the same network by other means, and the parts that torchvision's has not."""

from typing import Any

import pytest
import torch
import torchvision

from genray.models.torchvision_resnet import Standardise, TorchvisionResNet

# what is ours beside torchvision's
OURS = {"standardise.mean", "standardise.std"}


def build(shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 5, **knobs: Any) -> Any:
    return TorchvisionResNet(**({"width": 4} | knobs)).build(shape, num_classes)["classifier"]


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvision_resnet_gives_the_logits_of_torchvision(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).eval()
    ours = build((3, 96, 96), depth=depth, width=64, statistics="imagenet").eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(result.missing_keys) == OURS and not result.unexpected_keys
    pixels = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    theirs_in = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels / 127.5 - 1), theirs(theirs_in), rtol=1e-3, atol=1e-4)


def test_standardise_measures_the_mean_and_deviation_of_every_channel() -> None:
    pixels = torch.randint(256, (50, 3, 7, 9), dtype=torch.uint8)
    pixels[:, 1] //= 4
    standardise = Standardise(3, imagenet=False)
    standardise.measure(pixels)
    made = standardise(pixels / 127.5 - 1)
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_standardise_by_imagenet_stays_what_it_was() -> None:
    standardise = Standardise(3, imagenet=True)
    before = standardise.std.clone()
    standardise.measure(torch.zeros(4, 3, 2, 2, dtype=torch.uint8))
    assert torch.equal(standardise.std, before)


def test_standardise_of_constant_images_is_finite() -> None:
    standardise = Standardise(1, imagenet=False)
    standardise.measure(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))
    assert standardise(torch.zeros(1, 1, 2, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("side", "max_pool", "sides"), [(32, True, 2), (32, False, 4), (64, True, 4), (65, True, 3), (224, True, 7)]
)
def test_torchvision_resnet_keeps_small_images_large(side: int, max_pool: bool, sides: int) -> None:
    network = build((1, side, side), width=1, max_pool=max_pool)
    assert network.maps(torch.randn(2, 1, side, side)).shape[2:] == (sides, sides)


@pytest.mark.parametrize("hidden", [0, 6])
def test_torchvision_resnet_logits_are_a_linear_map_of_the_features(hidden: int) -> None:
    network = build(hidden=hidden, activation="gelu").eval()
    images = torch.randn(2, 3, 32, 32)
    features = network.features(images)
    assert features.shape == (2, network.feature_dim)
    torch.testing.assert_close(network(images), network.fc(features))


def test_torchvision_resnet_dropout_is_off_in_use() -> None:
    network = build(dropout=0.5)
    images = torch.randn(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))
    features = torch.ones(1000)
    network.train()
    assert 0.4 < (network.dropout(features) == 0).float().mean() < 0.6


def test_torchvision_resnet_activation_is_used_everywhere() -> None:
    kinds = {type(module).__name__ for module in build(activation="silu", hidden=3).modules()}
    assert "SiLU" in kinds and "ReLU" not in kinds


def test_torchvision_resnet_stages_hold_every_parameter_once() -> None:
    network = build(hidden=3)
    held = [p for stage in network.stages for module in stage for p in module.parameters()]
    assert len(held) == len({id(p) for p in held}) and {id(p) for p in held} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"depth": 19}, "model.depth=19 must be 18, 34 or 50"),
        ({"width": 0}, "model.width=0 must be at least 1"),
        ({"hidden": -1}, "model.hidden=-1 must be at least 0, units of a layer"),
        ({"dropout": 1.0}, "model.dropout=1.0 must lie in [0, 1), e.g. 0.2"),
        ({"activation": "tanh"}, "model.activation='tanh' must be one of relu, silu, gelu"),
        ({"stem": "tiny"}, "model.stem='tiny' must be one of auto, large, small"),
    ],
)
def test_torchvision_resnet_refuses_what_it_has_not(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        TorchvisionResNet(**knobs)
    assert str(caught.value) == message


def test_torchvision_resnet_refuses_imagenet_statistics_of_grey_images() -> None:
    with pytest.raises(ValueError, match=r"is of 3 channels, and the images have 1; set data\.channels to 3"):
        TorchvisionResNet(statistics="imagenet").check((1, 28, 28))


def test_torchvision_resnet_needs_two_classes() -> None:
    with pytest.raises(ValueError, match=r"^model torchvision-resnet needs 2 classes or more, and the data have 1; "):
        build(num_classes=1)

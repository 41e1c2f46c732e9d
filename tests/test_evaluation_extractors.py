"""Extractors from weight files, each with weights that the test made."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from genray.errors import CheckpointError, ConfigError, ProtocolError
from genray.evaluation.extractors import bring, is_brought, load, parse
from genray.evaluation.features import class_probabilities, extract
from genray.manifest import sha256

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")


def images(num, *shape):
    return torch.randint(256, (num, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Small(nn.Module):
    """Features and logits of three-channel images of any size."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        features = self.conv(x).mean(dim=(2, 3))
        return features, self.head(features)


class LiteratureLike(nn.Module):
    """The call of the FID literature's TorchScript file."""

    def forward(self, images, return_features: bool = False, no_output_bias: bool = False):
        assert images.dtype == torch.uint8 and images.size(1) == 3
        found = images.float().mean(dim=(2, 3))
        return found if return_features else found.softmax(1)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    network = models.resnet18(weights=None, num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(network.state_dict(), path)
    return network, path


def brought(spec, tmp_path):
    return load(bring(spec, tmp_path / "extractor"))


def test_resnet_features_are_what_enters_its_last_layer(resnet, tmp_path):
    network, path = resnet
    extractor = brought(f"resnet18:{path}", tmp_path)
    pixels = images(2, 3, 224, 224)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = extract(extractor, pixels)
    with torch.no_grad():
        logits = network((pixels / 255 - mean) / deviation)
        torch.testing.assert_close(network.fc(features), logits)
    torch.testing.assert_close(class_probabilities(extractor, pixels), logits.softmax(1))
    assert features.shape == (2, 512)


def test_extractor_carries_name_digest_of_the_weights_and_resize_rule(resnet, tmp_path):
    _, path = resnet
    extractor = brought(f"resnet18:{path}", tmp_path)
    assert (extractor.task, extractor.digest) == ("resnet18", sha256(path))
    assert extractor.resize == "bilinear-antialias-224"
    assert is_brought(tmp_path / "extractor") and not is_brought(tmp_path)


def test_resnet_from_safetensors_gives_the_same_features(resnet, tmp_path):
    network, path = resnet
    save_file(network.state_dict(), tmp_path / "same.safetensors")
    pixels = images(2, 1, 28, 28)
    a = extract(brought(f"resnet18:{path}", tmp_path / "a"), pixels)
    assert torch.equal(a, extract(brought(f"resnet18:{tmp_path / 'same.safetensors'}", tmp_path / "b"), pixels))


@pytest.mark.slow
def test_inception_v3_sees_299_pixels_from_minus_one_to_one(tmp_path):
    torch.manual_seed(0)
    network = models.inception_v3(weights=None, num_classes=5, init_weights=False, transform_input=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = brought(f"inception-v3:{tmp_path / 'weights.pth'}", tmp_path)
    pixels = images(1, 3, 299, 299)
    with torch.no_grad():
        torch.testing.assert_close(class_probabilities(extractor, pixels), network(pixels / 127.5 - 1).softmax(1))
    assert extract(extractor, images(1, 1, 28, 28)).shape == (1, 2048)
    assert extractor.resize == "bilinear-antialias-299"


def test_torchscript_module_with_a_size_sees_three_channels_of_it(tmp_path):
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    extractor = brought(f"torchscript-32:{tmp_path / 'small.pt'}", tmp_path)
    assert extractor.prepare(images(2, 1, 8, 8)).shape == (2, 3, 32, 32)
    assert extract(extractor, images(2, 1, 8, 8)).shape == (2, 5)
    assert class_probabilities(extractor, images(2, 1, 8, 8)).sum(1).tolist() == pytest.approx([1, 1])


def test_torchscript_module_of_another_input_size_is_refused(tmp_path):
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    extractor = brought(f"torchscript:{tmp_path / 'small.pt'}", tmp_path)
    with pytest.raises(ProtocolError, match=r"extractor 'torchscript' does not take images of \(1, 8, 8\) with resize"):
        extract(extractor, images(2, 1, 8, 8))


def test_torchscript_module_without_classes_is_refused_an_inception_score(tmp_path):
    torch.jit.script(nn.Sequential(nn.Flatten())).save(tmp_path / "flat.pt")
    extractor = brought(f"torchscript:{tmp_path / 'flat.pt'}", tmp_path)
    with pytest.raises(ProtocolError, match="returns features alone, so inception_score is not defined"):
        class_probabilities(extractor, images(2, 1, 8, 8))


@pytest.mark.parametrize("dynamic", [True, False])
def test_exported_program_gives_the_modules_features_in_batches_of_any_size(tmp_path, dynamic):
    module = Small().eval()
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(4, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "small.pt2")
    extractor = brought(f"exported:{tmp_path / 'small.pt2'}", tmp_path)
    pixels = images(7, 3, 16, 16)
    assert extractor.resize == "bilinear-antialias-16"
    with torch.no_grad():
        torch.testing.assert_close(extract(extractor, pixels, 5), module(pixels / 127.5 - 1)[0])


def test_fid_inception_is_called_as_the_literature_calls_it(tmp_path):
    torch.jit.script(LiteratureLike()).save(tmp_path / "inception.pt")
    extractor = brought(f"fid-inception:{tmp_path / 'inception.pt'}", tmp_path)
    pixels = images(3, 1, 8, 8)
    assert (extractor.task, extractor.resize) == ("fid-inception", "inside-the-network")
    torch.testing.assert_close(extract(extractor, pixels), pixels.float().mean((2, 3)).expand(-1, 3))
    assert class_probabilities(extractor, pixels).sum(1).tolist() == pytest.approx([1] * 3)


def test_features_that_are_not_finite_are_refused(resnet, tmp_path):
    weights = dict(resnet[0].state_dict())
    weights["conv1.weight"] = torch.full_like(weights["conv1.weight"], torch.inf)
    torch.save(weights, tmp_path / "bad.pth")
    with pytest.raises(ProtocolError, match="2 of 2 images have non-finite features under extractor 'resnet18'"):
        extract(brought(f"resnet18:{tmp_path / 'bad.pth'}", tmp_path), images(2, 3, 8, 8))


def test_weights_with_another_digest_than_was_sealed_are_refused(resnet, tmp_path):
    folder = bring(f"resnet18:{resnet[1]}", tmp_path / "extractor")
    data = bytearray((folder / "weights.pth").read_bytes())
    data[-1] ^= 1
    (folder / "weights.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.pth is damaged: its SHA-256 is .*, the manifest says"):
        load(folder)


def test_weights_of_another_network_are_refused(resnet, tmp_path):
    with pytest.raises(CheckpointError, match="does not hold a resnet34"):
        bring(f"resnet34:{resnet[1]}", tmp_path / "extractor")


def test_pickled_code_among_the_weights_is_not_run(tmp_path):
    torch.save({"fc.weight": Small()}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="does not hold a resnet18"):
        bring(f"resnet18:{tmp_path / 'code.pth'}", tmp_path / "extractor")


def test_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown kind 'resnet19'; choose from .*did you mean 'resnet18'"):
        parse("resnet19:/weights.pth")


def test_file_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"eval\.extractor='resnet18:/none\.pth': /none\.pth is no file"):
        bring("resnet18:/none.pth", tmp_path / "extractor")
    assert not (tmp_path / "extractor").exists()


@pytest.mark.parametrize("spec", ["mnist-classifier@champion", "runs/x/snapshot", "models:/a/1", "s3://bucket/x"])
def test_models_and_folders_are_no_weight_files(spec):
    assert parse(spec) is None

"""Where a classifier looks, what its mistakes are, and how far its confidence can be trusted."""

from pathlib import Path

import pytest
import torch
from evaluation_snapshots import save_classifier
from sklearn.calibration import calibration_curve
from torch import Tensor, nn
from torch.nn import functional as F

from genray import snapshot
from genray.config import Data
from genray.data.images import load_images
from genray.evaluation.calibration import reliability
from genray.evaluation.classifier_pictures import confusion_figure, pictures, surest_mistakes
from genray.evaluation.explain import grad_cam, integrated_gradients
from genray.models.resnet import ResNetClassifier
from genray.models.torchvision_resnet import TorchvisionResNet
from genray.sampling import to_float


class Corner(nn.Module):
    """Logit 1 is the mean of the 3 x 3 pixels at the top right, logit 0 its opposite."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        mean = self.scale * images[:, 0, :3, -3:].mean((1, 2))
        return torch.stack([-mean, mean], 1)


def blobs(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise, half of it (label 1) with a bright block of 3 x 3 pixels at the top right."""
    images = torch.randint(80, (num, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = torch.arange(num) % 2
    images[labels == 1, :, :3, -3:] += 150
    return images, labels


@pytest.fixture(scope="module")
def looks_at_corner() -> nn.Module:
    """A residual network that has learned to tell those images apart."""
    torch.manual_seed(0)
    network = ResNetClassifier(width=8, num_stages=2).build((1, 8, 8), 2)["classifier"]
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(30):
        images, labels = blobs(64, step)
        loss = F.cross_entropy(network(to_float(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_grad_cam_of_a_network_that_looks_at_one_corner_lights_that_corner(looks_at_corner: nn.Module) -> None:
    images, labels = blobs(16, 1000)
    maps = grad_cam(looks_at_corner, images[labels == 1], labels[labels == 1])
    inside = maps[:, :4, 4:].mean((1, 2))
    outside = (maps.sum((1, 2)) - 16 * inside) / 48
    assert (inside > 3 * outside).all()
    peaks = maps.flatten(1).argmax(1)
    assert (peaks // 8 < 4).all() and (peaks % 8 >= 4).all()


def test_integrated_gradients_of_a_network_of_one_corner_are_0_elsewhere() -> None:
    images, _ = blobs(4, 3)
    found = integrated_gradients(Corner(), images, torch.ones(4, dtype=torch.int64))
    expected = torch.zeros(4, 1, 8, 8)
    expected[:, :, :3, -3:] = (to_float(images)[:, :, :3, -3:] + 1) / 9
    torch.testing.assert_close(found, expected)


def test_integrated_gradients_add_up_to_what_the_image_changes(looks_at_corner: nn.Module) -> None:
    images, labels = blobs(6, 5)
    added = integrated_gradients(looks_at_corner, images, labels).sum((1, 2, 3))
    with torch.no_grad():
        logits = looks_at_corner(to_float(images)) - looks_at_corner(torch.full((6, 1, 8, 8), -1.0))
    change = logits.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(added, change, rtol=0.15, atol=0.3)


@pytest.mark.parametrize("model", [ResNetClassifier(width=4), TorchvisionResNet(width=4, max_pool=False)])
def test_explanations_leave_a_frozen_network_as_it_was(model: ResNetClassifier | TorchvisionResNet) -> None:
    network = model.build((3, 16, 16), 4)["classifier"].eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert grad_cam(network, images, torch.tensor([0, 3])).shape == (2, 16, 16)
    assert integrated_gradients(network, images, torch.tensor([0, 3])).shape == (2, 3, 16, 16)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def test_surest_mistakes_are_wrong_and_in_order_of_confidence() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    assert surest_mistakes(probabilities, torch.tensor([0, 1, 0, 0]), 2).tolist() == [2, 3]


def test_reliability_agrees_with_sklearn() -> None:
    source = torch.Generator().manual_seed(0)
    right = torch.rand(400, generator=source) * 0.5 + 0.5
    probabilities, labels = torch.stack([right, 1 - right], 1), (torch.rand(400, generator=source) > right).long()
    bins = reliability(probabilities, labels, 10)
    accuracy, confidence = calibration_curve(labels == 0, right.double(), n_bins=10)
    shown = bins.count > 0
    torch.testing.assert_close(bins.accuracy[shown], torch.from_numpy(accuracy), rtol=1e-9, atol=0)
    torch.testing.assert_close(bins.confidence[shown], torch.from_numpy(confidence), rtol=1e-6, atol=0)


def test_confusion_figure_has_every_count_in_its_cell() -> None:
    axes = confusion_figure(torch.tensor([[5, 2], [0, 7]]), ("cat", "dog")).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "5", (1, 0): "2", (1, 1): "7"}


def test_pictures_of_a_classifier_are_these_three(tmp_path: Path) -> None:
    classifier = snapshot.load(save_classifier(tmp_path / "snapshot"))
    made = pictures(classifier, load_images(Data(name="digits"), "test"))
    assert [picture.name for picture in made] == ["confusion.png", "reliability.png", "mistakes.png"]
    assert all(picture.pixels.std() > 10 for picture in made)

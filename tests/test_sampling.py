from types import SimpleNamespace

import evaluation_snapshots as snapshots
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genray import snapshot
from genray.errors import ConfigError, DivergenceError
from genray.sampling import generate, grid, latents, sample, save_png, to_float, to_uint8


class Conv(nn.Module):
    """The interface of a generator, with convolutions."""

    latent_dim = 6

    def __init__(self, num_labels):
        super().__init__()
        self.num_labels = num_labels
        self.embed = nn.Embedding(max(1, num_labels), 6)
        self.net = nn.Sequential(
            nn.ConvTranspose2d(6, 16, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()
        )

    def generate(self, z, labels=None):
        if self.num_labels:
            z = z + self.embed(labels)
        return self.net(z[:, :, None, None])


class Labelled(nn.Module):
    """Paints every pixel with its label."""

    latent_dim, num_labels = 2, 3

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def generate(self, z, labels):
        return (labels.float() / 127.5 - 1 + self.shift)[:, None, None, None].expand(-1, 1, 4, 4)


def snapshot_of(module, product="generator", classes=("cat", "dog", "owl")):
    return SimpleNamespace(module=module, product=product, task="pets-generator", classes=classes)


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return snapshot_of(Conv(0))


def test_sample_gives_uint8_images_of_the_model(conv):
    images = sample(conv, 5, seed=1)
    assert images.shape == (5, 3, 8, 8) and images.dtype == torch.uint8


def test_sample_with_equal_seed_is_bit_equal(conv):
    assert torch.equal(sample(conv, 40, seed=1, batch_size=16), sample(conv, 40, seed=1, batch_size=16))


def test_sample_with_another_seed_differs(conv):
    assert not torch.equal(sample(conv, 4, seed=1), sample(conv, 4, seed=2))


def test_sample_leaves_the_global_generator_alone(conv):
    before = torch.get_rng_state()
    sample(conv, 4, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_sample_is_within_one_grey_level_whatever_the_batch_size(conv):
    whole = sample(conv, 40, seed=1, batch_size=40).int()
    parts = sample(conv, 40, seed=1, batch_size=7).int()
    assert (whole - parts).abs().max() <= 1


def test_sample_runs_in_eval_mode_without_moving_batch_norm(conv):
    conv.module.train()
    before = conv.module.net[1].running_mean.clone()
    first = sample(conv, 8, seed=1)
    assert torch.equal(conv.module.net[1].running_mean, before)
    assert torch.equal(first, sample(conv, 8, seed=1))


def test_sample_equals_the_rule_written_in_plain_torch(conv):
    z = torch.randn(10, 6, generator=torch.Generator().manual_seed(3)) * 0.5
    with torch.no_grad():
        images = torch.cat([conv.module.eval().net(part[:, :, None, None]) for part in z.split(4)])
    expected = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(sample(conv, 10, seed=3, truncation=0.5, batch_size=4), expected)


def test_sample_takes_the_labels_in_turn_across_batches():
    images = sample(snapshot_of(Labelled()), 7, seed=0, batch_size=2)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_sample_with_a_label_takes_only_that_one():
    assert sample(snapshot_of(Labelled()), 4, seed=0, label=2).unique().tolist() == [2]


@pytest.mark.parametrize("label", [-1, 3])
def test_sample_refuses_a_label_out_of_range(label):
    with pytest.raises(ConfigError) as caught:
        sample(snapshot_of(Labelled()), 4, seed=0, label=label)
    assert str(caught.value) == f"label={label} must lie between 0 and 2, the places of: cat, dog, owl"


def test_sample_refuses_a_label_for_an_unconditional_model(conv):
    with pytest.raises(ConfigError) as caught:
        sample(conv, 4, seed=0, label=0)
    assert str(caught.value) == "label=0 was asked for, but the model is unconditional; leave the label out"


def test_sample_refuses_a_classifier():
    with pytest.raises(ConfigError, match="'pets-generator' is a classifier, which makes no images"):
        sample(snapshot_of(nn.Linear(1, 1), "classifier"), 1, seed=0)


@pytest.mark.parametrize(
    "wrong", [{"num": 0}, {"seed": -1}, {"truncation": -0.5}, {"truncation": float("nan")}, {"batch_size": 0}]
)
def test_sample_refuses_a_number_out_of_range_by_its_name(conv, wrong):
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=f"{name}=.* must be at least"):
        sample(conv, **{"num": 2, "seed": 0} | wrong)


def test_sample_of_a_diverged_model_is_an_error_that_counts_images():
    module = Labelled()
    nn.init.constant_(module.shift, float("nan"))
    with pytest.raises(DivergenceError, match="4 of 4 generated images have non-finite pixels"):
        sample(snapshot_of(module), 4, seed=0)


def test_truncation_zero_makes_all_images_of_a_class_equal(conv):
    images = sample(conv, 5, seed=0, truncation=0)
    assert (images == images[:1]).all()


def test_latents_before_the_last_block_do_not_depend_on_num():
    assert torch.equal(latents(100, 7, seed=5)[:90], latents(1000, 7, seed=5)[:90])


def test_generate_gives_each_latent_its_label():
    labels = torch.tensor([2, 0, 1, 1, 2])
    images = generate(Labelled(), torch.zeros(5, 2), labels, batch_size=2)
    assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_uint8_and_float_are_inverse_on_every_grey_level():
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    assert torch.equal(to_uint8(to_float(levels)), levels)


def test_pixels_beyond_the_range_are_cut_off():
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def test_float_spans_minus_one_to_one():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("num", "side", "columns", "shape"),
    [
        (16, 8, None, (4 * 34 + 2, 4 * 34 + 2, 3)),  # 8 px are shown as 32
        (10, 28, None, (3 * 58 + 2, 4 * 58 + 2, 3)),  # 28 px as 56, the last row not full
        (6, 32, 6, (34 + 2, 6 * 34 + 2, 3)),
        (1, 64, None, (68, 68, 3)),
    ],
)
def test_grid_has_two_pixels_around_every_tile(num, side, columns, shape):
    pixels = grid(torch.zeros(num, 1, side, side, dtype=torch.uint8), columns)
    assert pixels.shape == shape and pixels.dtype == np.uint8


def test_grid_puts_images_row_by_row_in_their_colours():
    images = torch.arange(18, dtype=torch.uint8).reshape(6, 3, 1, 1).expand(-1, -1, 32, 40)
    pixels = grid(images, columns=3)
    assert pixels[34 + 2, 2 * 42 + 2].tolist() == images[5, :, 0, 0].tolist()
    assert (pixels[2:34, 2:42] == images[0, :, 0, 0].numpy()).all()


def test_grid_is_white_where_there_is_no_image():
    pixels = grid(torch.zeros(3, 1, 32, 32, dtype=torch.uint8), columns=2)
    assert (pixels[36:, 36:] == 255).all() and (pixels[:, :2] == 255).all()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 3, 4, 4, dtype=torch.uint8),
    ],
)
def test_grid_refuses_what_is_not_a_set_of_uint8_images(images):
    with pytest.raises(ConfigError, match=r"grid takes uint8 images \(N, C, H, W\)"):
        grid(images)


def test_save_png_is_read_back_pixel_by_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    save_png(tmp_path / "grid.png", pixels)
    with Image.open(tmp_path / "grid.png") as image:
        assert (np.asarray(image) == pixels).all()


def test_save_png_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        save_png(path, np.zeros((4, 4, 5, 3), np.uint8))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_truncation_to_zero_makes_one_image_a_class_where_it_goes_to_the_mean_style(tmp_path):
    model = snapshot.load(snapshots.save_stylegan2(tmp_path / "styles"))
    images = sample(model, 20, seed=0, truncation=0.0)
    assert torch.equal(images[:10], images[10:]) and len(images[:10].unique(dim=0)) == 10


def test_truncation_of_a_model_of_styles_leaves_its_latents_alone(tmp_path):
    model = snapshot.load(snapshots.save_stylegan2(tmp_path / "styles"))
    half, whole = (sample(model, 10, seed=0, truncation=truncation) for truncation in (0.5, 1.0))
    z, labels = latents(10, 4, 0), torch.arange(10)
    assert torch.equal(half, to_uint8(model.module.generate(z, labels, 0.5)))
    assert not torch.equal(half, whole)

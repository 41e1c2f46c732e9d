"""Folders of images that anything made."""

import numpy as np
import pytest
import torch
from PIL import Image

from genray.errors import CorruptImageError, DataError
from genray.evaluation.folder import holds_images, load_folder


def picture(path, size=(8, 6), seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_flat_folder_is_its_images_in_order_of_names_without_classes(tmp_path):
    second, first = picture(tmp_path / "b.png", seed=1), picture(tmp_path / "a.png", seed=2)
    found = load_folder(tmp_path, 3)
    assert found.images.shape == (2, 3, 6, 8) and found.classes == ()
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), np.stack([first, second]))


def test_folder_of_classes_has_them_as_labels(tmp_path):
    for index, name in enumerate(("cat/1.png", "cat/2.PNG", "dog/1.jpg")):
        picture(tmp_path / name, seed=index)
    found = load_folder(tmp_path, 3)
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 0, 1]


def test_grey_images_of_a_grey_set_keep_their_pixels(tmp_path):
    pixels = picture(tmp_path / "a.png", mode="L")
    assert torch.equal(load_folder(tmp_path, 1).images[0, 0], torch.from_numpy(pixels))


def test_folder_of_mixed_sizes_is_refused_by_name(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(8, 8))
    with pytest.raises(DataError, match=r"b\.png has 8 x 8 pixels, and .*a\.png has 8 x 6; images that are scored"):
        load_folder(tmp_path, 3)


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="holds no PNG or JPEG images"):
        load_folder(tmp_path, 3)
    assert not holds_images(tmp_path)


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="none is no folder"):
        load_folder(tmp_path / "none", 3)


def test_images_beside_classes_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "cat" / "a.png")
    with pytest.raises(DataError, match=r"has 'a\.png' beside the class 'cat'"):
        load_folder(tmp_path, 3)


@pytest.mark.parametrize("keep", [5, 60])
def test_image_that_does_not_decode_is_named(tmp_path, keep):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:keep])
    with pytest.raises(CorruptImageError, match=r"b\.png does not decode"):
        load_folder(tmp_path, 3)

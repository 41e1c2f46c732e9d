"""Images that are in two splits."""

from dataclasses import replace

import pytest
import torch

from genray.config import Data
from genray.data.images import ImageSet, load_images
from genray.data.leaks import describe, refuse_leak, shared_images
from genray.errors import DataError


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return load_images(Data(name="digits"), "test")


def with_image(images: ImageSet, place: int, image: torch.Tensor) -> ImageSet:
    pixels = images.images.clone()
    pixels[place] = image
    return replace(images, images=pixels)


def test_digits_have_no_image_in_both_splits(digits: ImageSet, held_out: ImageSet) -> None:
    assert shared_images(digits, held_out) == []


def test_shared_images_are_found_wherever_they_are(digits: ImageSet, held_out: ImageSet) -> None:
    leaky = with_image(with_image(held_out, 3, digits.images[41]), 200, digits.images[7])
    assert shared_images(digits, leaky) == [(41, 3), (7, 200)]


def test_image_that_differs_in_one_level_is_no_copy(digits: ImageSet, held_out: ImageSet) -> None:
    image = digits.images[0].clone()
    image[0, 0, 0] += 1
    assert shared_images(digits, with_image(held_out, 3, image)) == []


def test_leak_is_refused_with_its_place_and_the_cure(digits: ImageSet, held_out: ImageSet) -> None:
    with pytest.raises(DataError) as caught:
        refuse_leak(digits, with_image(held_out, 3, digits.images[41]))
    assert str(caught.value) == (
        "1 of 359 images of split 'test' of 'digits' are in split 'train' too (pixel by pixel; the first is image 3, "
        "there image 41), so that scores would be too good; remove the copies, or go on with --data.on-leak warn"
    )


def test_split_is_described_by_its_digest_and_its_classes(held_out: ImageSet) -> None:
    found = describe(held_out)
    assert found["digest"] == held_out.digest
    assert found["images"] == sum(found["classes"].values()) == len(held_out)
    assert found["classes"]["3"] == int((held_out.labels == 3).sum())

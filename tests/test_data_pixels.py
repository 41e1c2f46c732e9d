"""Bytes of an image -> pixels of the asked size."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from image_folders import paint
from PIL import Image

from genray.data.pixels import decode


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_decode_cuts_the_centre_out() -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    assert (decode(encode(Image.fromarray(wide)), (3, 4, 4)) == 200).all()


def test_decode_of_the_same_size_leaves_pixels_alone() -> None:
    image = paint(0)
    assert np.array_equal(decode(encode(image), (3, 12, 10)), np.asarray(image))


def test_decode_keeps_the_upper_bits_of_16_bit_grey() -> None:
    wide = np.array([[0, 256, 32_768, 65_535]], np.uint16)
    assert decode(encode(Image.fromarray(wide)), (1, 1, 4)).ravel().tolist() == [0, 1, 128, 255]


def test_decode_lays_transparent_pixels_on_white() -> None:
    assert (decode(encode(Image.new("RGBA", (4, 4), (9, 9, 9, 0))), (3, 4, 4)) == 255).all()


def test_decode_turns_a_photograph_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = paint(0)
    assert np.array_equal(decode(encode(image, exif=exif), (3, 12, 10)), np.asarray(image)[::-1, ::-1])


def test_decode_refuses_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(paint(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 119)
    with pytest.raises(ValueError, match=r"120"):
        decode(encoded, (3, 8, 8))


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_decode_refuses_a_bomb_where_pillow_would_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(paint(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 119)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="10 x 12 pixels, more than the 119 that Pillow takes for safe"),
    ):
        decode(encoded, (3, 8, 8))


def test_decode_does_not_run_postscript() -> None:
    with pytest.raises(ValueError, match=r"bytes that are no image"):
        decode(encode(paint(0), "EPS"), (3, 8, 8))

"""An encoded image of any kind -> uint8 pixels of one shape."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]
"""(C, H, W)."""

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # without those that run a program (EPS)
_WIDE_GREY = ("I;16", "I;16B", "I;16L", "I;16N")


def decode(encoded: bytes, shape: Shape) -> Pixels:
    """Pixels (H, W, C) of one image file, upright, cut and resized to `shape` (C, H, W).

    An animation gives its first frame.

    Raises:
        ValueError: the bytes are no image of a format in use, end early, or unpack to more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`; the message is the reason alone, for the caller to name the file.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _refuse_bomb(image)
            side = 2 * max(shape[1:])
            ImageOps.exif_transpose(image, in_place=True)
            image.draft(None, (side, side))  # JPEG: decodes at a fraction of the size, still twice what is needed
            return fit(image, shape)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(encoded)} bytes that are no image") from error
    except Exception as error:  # Pillow's plugins raise whatever the damage leads them to
        raise ValueError(str(error) or type(error).__name__) from error


def fit(image: Image.Image, shape: Shape) -> Pixels:
    """Pixels (H, W, C) of `image`: grey or colour, shorter side resized (Lanczos, antialiased), centre cut out.

    Transparent pixels lie on white; 16-bit grey keeps its upper 8 bits.

    Raises:
        ValueError: 32-bit pixels, whose range nothing tells.
    """
    channels, height, width = shape
    image = _opaque(image).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels)


def _opaque(image: Image.Image) -> Image.Image:
    """`image` in 8 bits, without transparency."""
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}); convert it to 8 or 16 bits")
    if image.mode in _WIDE_GREY:  # convert("L") would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour)
    return image


def _refuse_bomb(image: Image.Image) -> None:
    """Pillow only warns between one and two times its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the {limit} that Pillow takes for safe")


def fit_array(pixels: Pixels, shape: Shape) -> Pixels:
    """`fit` for decoded pixels (H, W) or (H, W, C)."""
    channels, height, width = shape
    if pixels.size == channels * height * width and pixels.shape[:2] == (height, width):
        return pixels.reshape(height, width, channels)
    return fit(Image.fromarray(pixels), shape)

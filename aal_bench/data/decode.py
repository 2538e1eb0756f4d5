"""Encoded images to pixels, with the errors that name the file or row."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from aal_bench.data.sources import Pixels, Source
from aal_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Plain raster formats only: Pillow also opens EPS and others, by starting external programs."""


def open_image(source: Source, i: int) -> Image:
    """Decode image `i` completely, in its own mode and size.

    Raises:
        UserError: not an image, truncated or damaged; names the file or row.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(source.read(i)), formats=FORMATS)
        image.load()
    except UnidentifiedImageError:
        raise _unreadable(source, i, "not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(source, i, str(error)) from None
    return image


def _unreadable(source: Source, i: int, reason: str) -> UserError:
    return UserError(f"{source.where(i)}: cannot be read ({reason}). Replace or remove it.")


def fixed_size(source: Source, i: int, size: int) -> np.ndarray:
    """Decode an image that must already be `size` x `size` RGB: uint8 (3, size, size).

    Nothing is converted silently: grey made RGB, or an image stretched, would be other pixels
    under the same name.

    Raises:
        UserError: unreadable, or of another size or mode.
    """
    image = open_image(source, i)
    if image.mode != "RGB" or image.size != (size, size):
        width, height = image.size
        raise UserError(
            f"{source.where(i)}: {width}x{height} {image.mode} image, but the task takes "
            f"{size}x{size} RGB. Convert the images, or use a task of that size."
        )
    return np.asarray(image).transpose(2, 0, 1)


def decode_all(source: Source, size: int) -> Pixels:
    """Decode a whole split of `size` x `size` RGB images (about 11,000 CIFAR images a second)."""
    images = np.empty((len(source), 3, size, size), np.uint8)
    for i in range(len(source)):
        images[i] = fixed_size(source, i, size)
    return Pixels(images, source.labels)

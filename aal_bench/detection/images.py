"""Whether an image file is there and whole, and how large it is: from its two ends alone."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from aal_bench.data.decode import FORMATS
from aal_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of two files of one name, the one whose ending stands first here counts."""
TAIL = 4096
"""Bytes at the end of a file in which the image's end is looked for: cameras append some of their
own."""
ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
"""Values of EXIF's orientation that exchange width and height."""


def listing(folder: str) -> dict[str, str]:
    """The image files of `folder`: name without ending -> name. Empty where there is no folder."""
    try:
        names = [name for name in os.listdir(folder) if _rank(name) < len(SUFFIXES)]
    except OSError:
        return {}
    ordered = sorted(names, key=lambda name: (_rank(name), name), reverse=True)
    return {os.path.splitext(name)[0]: name for name in ordered}


def _rank(name: str) -> int:
    suffix = os.path.splitext(name)[1].lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)


def check(path: str, annotated: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return (width, height) of an image as MMDetection decodes it.

    Only an image whose file does not end as an image does is decoded: what it lacks, OpenCV makes
    grey, or refuses when it is asked for in the midst of training.

    Args:
        path: of the image.
        annotated: (width, height) by its annotations; None or zeros: they do not say.

    Raises:
        UserError: no such file, no image, a truncated one, or one that its EXIF turns but its
            annotations do not.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as handle:
            image = Image.open(handle, formats=FORMATS)
            width, height = image.size
            sideways = _sideways(image)
            if not _whole(image, handle):
                handle.seek(0)
                Image.open(handle, formats=FORMATS).load()
    except FileNotFoundError:
        raise UserError(f"{path}: missing. Put the image there, or take it off the list.") from None
    except UnidentifiedImageError:
        raise _unreadable(path, "not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, str(error)) from None
    if not sideways:
        return width, height
    if annotated == (width, height):
        raise UserError(
            f"{path}: its EXIF turns it, but its boxes are those of the image as it is stored. "
            "Save it upright, without orientation."
        )
    return height, width


def _whole(image: Image, handle: IO[bytes]) -> bool:
    """Whether the file ends as a complete one of its format does; False: not known."""
    size = os.fstat(handle.fileno()).st_size
    if image.format == "JPEG":
        # Behind the header, which may hold a thumbnail with an end of its own. Within the pixels
        # no FF is followed by D9.
        handle.seek(max(handle.tell(), size - TAIL))
        return b"\xff\xd9" in handle.read()
    if image.format == "PNG":
        handle.seek(max(0, size - TAIL))
        return b"IEND" in handle.read()
    return False


def _sideways(image: Image) -> bool:
    return "exif" in image.info and image.getexif().get(ORIENTATION) in SIDEWAYS


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read ({reason}). Replace or remove it.")

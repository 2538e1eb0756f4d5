"""The embedded few-shot set: characters of the fonts that matplotlib carries, drawn by Pillow.

White strokes on black, three equal channels, every character at one size. A character is drawn
large, and from there on all is whole numbers (a bitmap, turned and shifted by nearest neighbour,
and counted in blocks), so that the pixels do not depend on a processor's rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aal_bench.data import glyph_classes
from aal_bench.data.sources import Pixels
from aal_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

IMAGES = 40
"""Of each class: its different renderings, then turned and shifted copies of them in turn."""
DETAIL = 4
"""Bitmap pixels on the side of a pixel of the image, which thus has 17 grey levels."""
EXTENT = (5, 7)
"""Longer side of a character as a part of the image's side: 20 of 28 px, as MNIST has it."""
DRAWN = 128
"""Font size, in pixels, at which a character is drawn before it is brought to that size."""
PAGE = 3
"""Side of the page that it is drawn on, in font sizes."""
INK = [0] * 128 + [255] * 128
"""Pillow's table for `Image.point`: a pixel at least half covered is ink."""
LEVELS = np.array([round(255 * count / DETAIL**2) for count in range(DETAIL**2 + 1)], np.uint8)
"""Grey level of a pixel by its ink, 0..`DETAIL` squared."""
ANGLE = 10
"""Copies are turned by up to so many whole degrees to either side."""
SHIFT = 14
"""Copies are shifted, down and across, by up to a 14th of the side: 2 of 28 px."""
SEED = 0
SMALLEST = 14
"""Smallest side: below, copies of a character could not all differ."""
FONTS = (
    *(f"DejaVuSans{kind}" for kind in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{kind}" for kind in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{kind}" for kind in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{kind}" for kind in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{kind}10" for kind in ("r", "b", "ti", "mi", "ss", "tt")),
)
"""Not LastResort's placeholders, nor the fonts of symbols and sizes. Named, so that a font that a
later matplotlib adds changes no image."""
TEX = "cm"
"""TeX's fonts have Unicode's ASCII letters and digits, and other characters at other places."""


def names() -> dict[str, tuple[str, ...]]:
    """The classes of ``train``, ``validation`` and ``test``: Unicode's names of the characters."""
    return {
        split: tuple(glyph_classes.name(one) for one in characters)
        for split, characters in glyph_classes.split().items()
    }


def read(size: int) -> dict[str, Pixels]:
    """Draw the three splits at `size` x `size`, `IMAGES` of each class (seconds).

    Raises:
        UserError: a font is missing, or `size` is below `SMALLEST`.
    """
    if size < SMALLEST:
        raise UserError(f"glyphs: data.size is {size}, but the least is {SMALLEST}")
    drawn = draw("".join(glyph_classes.CHARACTERS.values()), size)
    turned = _Turned(size)
    return {
        split: _pixels([_fill(ord(one), drawn[one], turned) for one in characters])
        for split, characters in glyph_classes.split().items()
    }


def fonts() -> list[Path]:
    """List the files of `FONTS`.

    Raises:
        UserError: matplotlib was installed without one.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [folder / f"{name}.ttf" for name in FONTS]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{folder}: no {', '.join(missing)}. Install matplotlib again.")
    return files


def draw(characters: str, size: int) -> dict[str, list[np.ndarray]]:
    """Draw every character in each of `fonts` that has it, as bitmaps of `DETAIL` x `size` a side.

    Returns:
        For each character its renderings, bool (S, S), in the order of the fonts, without those
        that equal an earlier one once they are images.
    """
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    found: dict[str, dict[bytes, np.ndarray]] = {one: {} for one in characters}
    for path in fonts():
        # Pillow draws a box for a character that a font lacks: only the font's own table tells.
        known = FT2Font(str(path)).get_charmap()
        font = ImageFont.truetype(str(path), DRAWN, layout_engine=ImageFont.Layout.BASIC)
        for one in characters:
            if ord(one) in known and (one.isascii() or not path.name.startswith(TEX)):
                bitmap = _bitmap(font, one, size)
                if bitmap is not None:
                    found[one].setdefault(reduce(bitmap).tobytes(), bitmap)
    return {one: list(different.values()) for one, different in found.items()}


def _bitmap(font: FreeTypeFont, character: str, size: int) -> np.ndarray | None:
    """Draw a character centred and at its `EXTENT`: bool (S, S); None where nothing is drawn."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (PAGE * DRAWN, PAGE * DRAWN))
    ImageDraw.Draw(page).text((DRAWN, 2 * DRAWN), character, fill=255, font=font, anchor="ls")
    box = page.point(INK).getbbox()
    if box is None:
        return None
    cut = page.crop(box)
    side = size * DETAIL
    extent = side * EXTENT[0] // EXTENT[1]
    longer = max(cut.size)
    width, height = (max(1, (2 * extent * n + longer) // (2 * longer)) for n in cut.size)
    scaled = np.asarray(cut.resize((width, height), Image.Resampling.BOX)) >= 128
    bitmap = np.zeros((side, side), bool)
    row, column = (side - height) // 2, (side - width) // 2
    bitmap[row : row + height, column : column + width] = scaled
    return bitmap


def reduce(bitmap: np.ndarray) -> np.ndarray:
    """Count the ink in blocks of `DETAIL` x `DETAIL`: bool (S, S) to uint8 (size, size)."""
    size = len(bitmap) // DETAIL
    # Two sums of bytes instead of one over two axes: several times as fast, and 16 is no overflow.
    rows = bitmap.reshape(size, DETAIL, size * DETAIL).sum(1, dtype=np.uint8)
    return LEVELS[rows.reshape(size, size, DETAIL).sum(2, dtype=np.uint8)]


class _Turned:
    """For each whole degree the bitmap position that every position of a turned copy shows."""

    def __init__(self, size: int) -> None:
        side = size * DETAIL
        self.reach = side // SHIFT
        # Twice the distance from the centre, so that it is whole; the turn in 2^-16.
        down, across = np.mgrid[:side, :side] * 2 + 1 - side
        self.positions: dict[int, np.ndarray] = {}
        for angle in range(-ANGLE, ANGLE + 1):
            cosine, sine = (round(float(f(np.deg2rad(angle))) * 2**16) for f in (np.cos, np.sin))
            row = (cosine * down - sine * across + (side << 16)) >> 17
            column = (sine * down + cosine * across + (side << 16)) >> 17
            # Corners come from outside, where all is black, as it is at the bitmap's own edge.
            self.positions[angle] = row.clip(0, side - 1) * side + column.clip(0, side - 1)

    def copy(self, bitmap: np.ndarray, angle: int, down: int, across: int) -> np.ndarray:
        turned = bitmap.ravel()[self.positions[angle]]
        return np.roll(turned, (down, across), (0, 1))


def _fill(seed: int, renderings: list[np.ndarray], turned: _Turned) -> np.ndarray:
    """Return uint8 (`IMAGES`, size, size), all different: the renderings, then copies in turn."""
    images = {reduce(one).tobytes(): reduce(one) for one in renderings[:IMAGES]}
    bits = np.random.PCG64(np.random.SeedSequence((SEED, seed)))
    number = 0
    while len(images) < IMAGES:
        reach = (ANGLE, turned.reach, turned.reach)
        angle, down, across = (int(bits.random_raw() % (2 * r + 1)) - r for r in reach)
        bitmap = renderings[number % len(renderings)]
        image = reduce(turned.copy(bitmap, angle, down, across))
        images.setdefault(image.tobytes(), image)
        number += 1
    return np.stack([*images.values()])


def _pixels(classes: list[np.ndarray]) -> Pixels:
    grey = np.concatenate(classes)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), IMAGES)
    return Pixels(np.repeat(grey[:, None], 3, axis=1), labels)

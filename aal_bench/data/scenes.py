"""The embedded detection set: scikit-learn's handwritten digits on textures, in VOC's layout.

Each split has digits of its own, so that no stroke of a test image was seen in training. Pixels are
whole numbers and Pillow's resampling from the first to the last.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aal_bench.data.subset import hold_out
from aal_bench.data.textures import Dice, background
from aal_bench.errors import UserError
from aal_bench.files import write_text
from aal_bench.hashing import sha256_json
from aal_bench.paths import cache_folder
from aal_bench.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = "1"
"""Of the images; another version is another folder of the cache."""
NAMES = tuple("0123456789")
SIDE = 512
"""Pixels of an image's side."""
COUNTS = {"train": 240, "val": 40, "test": 60}
DIGITS = (2, 6)
"""Fewest and most digits of an image."""
GLYPH = (48, 160)
"""Shortest and longest longer side of a digit, in pixels; its box loses a soft pixel or two."""
ANGLE = 15
"""Digits are turned by up to so many whole degrees to either side."""
OVERLAP = 5
"""Two boxes share at most a fifth of the smaller one (an IoU below 0.2 follows)."""
TRIES = 60
CONTRAST = (40, 130)
"""Least and most difference in luminance between a digit and what lies under it, of 255."""
INK = 96
"""Opacity, of 255, from which a pixel belongs to the visible digit, which its box encloses."""
POOLS = {"test": 400, "val": 300}
"""Source digits of these splits, class-balanced; the other 1,097 are the training split's."""
MANIFEST = "manifest.json"


class Placed(NamedTuple):
    """A digit in an image: class and box, from 0, right and lower edge excluded."""

    name: str
    box: tuple[int, int, int, int]


def folder_of() -> Path:
    """Where `ensure` keeps the set."""
    return cache_folder() / f"scenes-{VERSION}"


def ensure() -> Path:
    """Return the folder of the set, made in seconds where it is absent, incomplete or damaged.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = folder_of()
    if not complete(folder):
        _install(folder)
    return folder


def complete(folder: Path) -> bool:
    """Tell whether every file that `make` wrote is there in its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest == _manifest(folder)
    except (OSError, ValueError):
        return False


def make(folder: Path, counts: dict[str, int] | None = None, seed: int = 0) -> None:
    """Write the set into `folder`: JPEGImages, Annotations and ImageSets/Main.

    Args:
        folder: made where it is absent.
        counts: images of ``train``, ``val`` and ``test``; None: `COUNTS`.
        seed: decides every pixel. An image depends on it, its split and its place there alone.

    Raises:
        UserError: the folder cannot be written.
    """
    counts = COUNTS if counts is None else counts
    try:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        with track("scenes", sum(counts.values())) as progress:
            for stream, split in enumerate(COUNTS):
                pool = _pool(split)
                names = [f"{split}_{number:04d}" for number in range(counts.get(split, 0))]
                for number, name in enumerate(names):
                    image, placed = scene(Dice(seed, stream, number), pool)
                    image.save(folder / "JPEGImages" / f"{name}.jpg", "JPEG", quality=95)
                    xml = annotation(name, image.size, placed)
                    (folder / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
                    progress.advance()
                listed = "".join(f"{name}\n" for name in names)
                (folder / "ImageSets/Main" / f"{split}.txt").write_text(listed, encoding="utf-8")
        write_text(folder / MANIFEST, json.dumps(_manifest(folder), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None


def scene(dice: Dice, pool: list[list[np.ndarray]], side: int = SIDE) -> tuple[Image, list[Placed]]:
    """Draw an image and say where its digits are.

    Args:
        dice: decides everything.
        pool: for each class its source digits, uint8 (8, 8) in 0..16.
        side: of the image, in pixels.

    Returns:
        RGB image, and its digits: one is left out where `TRIES` places were all taken.
    """
    image = background(dice, side)
    placed: list[Placed] = []
    for _ in range(dice.between(*DIGITS)):
        label = dice.between(0, len(pool) - 1)
        source = pool[label][dice.between(0, len(pool[label]) - 1)]
        opacity = glyph(source, dice.between(*GLYPH), dice.between(-ANGLE, ANGLE))
        height, width = opacity.shape
        for _ in range(TRIES):
            left, top = dice.between(0, side - width), dice.between(0, side - height)
            box = (left, top, left + width, top + height)
            if all(_apart(box, other.box) for other in placed):
                _paint(image, opacity, box, dice)
                placed.append(Placed(NAMES[label], box))
                break
    return image, placed


def glyph(source: np.ndarray, extent: int, angle: int) -> np.ndarray:
    """Upscale and turn a digit: opacity, uint8 (H, W), the longer side about `extent` pixels.

    Every edge row and column holds a pixel of at least `INK`: the array is its own tight box.
    """
    from PIL import Image

    levels = np.pad((source.astype(np.int64) * 255 // 16).astype(np.uint8), 1)
    smooth = Image.fromarray(levels).resize((160, 160), Image.Resampling.BICUBIC)
    smooth = smooth.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    rough = smooth.crop(smooth.point(_RAMP).point(_VISIBLE).getbbox())
    longer = max(rough.size)
    size = [max(1, (2 * extent * n + longer) // (2 * longer)) for n in rough.size]
    drawn = rough.resize((size[0], size[1]), Image.Resampling.BICUBIC).point(_RAMP)
    return np.asarray(drawn.crop(drawn.point(_VISIBLE).getbbox()))


# Eight grey levels over so many pixels are a blur; the ramp makes strokes with a soft edge of it.
_RAMP = [min(255, max(0, (level - 85) * 255 // 90)) for level in range(256)]
_VISIBLE = [0] * INK + [255] * (256 - INK)


def _paint(image: Image, opacity: np.ndarray, box: tuple[int, int, int, int], dice: Dice) -> None:
    """Mix a colour into `image`, lighter or darker than what lies there by a random amount."""
    from PIL import Image

    under = np.asarray(image.crop(box)).astype(np.int64)
    luminance = _luminance(under[opacity >= INK].sum(0)) // int((opacity >= INK).sum())
    contrast = dice.between(*CONTRAST)
    lighter = dice.between(0, 1) == 1 if contrast <= min(luminance, 255 - luminance) else None
    up = luminance < 128 if lighter is None else lighter
    wanted = luminance + contrast if up else luminance - contrast
    colour = dice.bytes(3).astype(np.int64)
    # Shift a random colour to that luminance; what is cut off at 0 and 255 is shifted again.
    for _ in range(4):
        colour = (colour + wanted - _luminance(colour)).clip(0, 255)
    grain = dice.bytes(*opacity.shape).astype(np.int64) // 16 - 8
    stroke = (colour + grain[..., None]).clip(0, 255)
    share = opacity[..., None].astype(np.int64)
    mixed = (stroke * share + under * (255 - share) + 127) // 255
    image.paste(Image.fromarray(mixed.astype(np.uint8)), box[:2])


def _luminance(rgb: np.ndarray) -> int:
    return int(rgb @ np.array([299, 587, 114])) // 1000


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width <= 0 or height <= 0 or OVERLAP * width * height <= smaller


def _pool(split: str) -> list[list[np.ndarray]]:
    """For each class the source digits of a split, uint8 (8, 8); no two splits share one."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images, labels = bundle.images.astype(np.uint8), bundle.target  # pyright: ignore[reportAttributeAccessIssue]
    rest = np.arange(len(labels))
    for name, count in POOLS.items():
        left, held = hold_out(labels[rest], count, 0)
        if name == split:
            rest = rest[held]
            break
        rest = rest[left]
    return [[images[i] for i in rest if labels[i] == label] for label in range(10)]


def annotation(name: str, size: tuple[int, int], placed: list[Placed]) -> str:
    """Return the VOC XML of an image: counted from 1, both ends included."""
    width, height = size
    objects = "".join(
        f"  <object>\n    <name>{one.name}</name>\n    <pose>Unspecified</pose>\n"
        "    <truncated>0</truncated>\n    <difficult>0</difficult>\n    <bndbox>\n"
        f"      <xmin>{one.box[0] + 1}</xmin>\n      <ymin>{one.box[1] + 1}</ymin>\n"
        f"      <xmax>{one.box[2]}</xmax>\n      <ymax>{one.box[3]}</ymax>\n"
        "    </bndbox>\n  </object>\n"
        for one in placed
    )
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{name}.jpg</filename>\n"
        "  <source>\n    <database>aal-bench scenes</database>\n  </source>\n"
        f"  <size>\n    <width>{width}</width>\n    <height>{height}</height>\n"
        f"    <depth>3</depth>\n  </size>\n  <segmented>0</segmented>\n{objects}</annotation>\n"
    )


def _manifest(folder: Path) -> dict[str, object]:
    """Count the set's files, and hash their names and sizes: cheap, and a cut file shows."""
    parts = ("JPEGImages", "Annotations", "ImageSets/Main")
    files = sorted(
        [f"{part}/{entry.name}", entry.stat().st_size]
        for part in parts
        for entry in os.scandir(folder / part)
    )
    return {"version": VERSION, "count": len(files), "sha256": sha256_json(files)}


def _install(folder: Path) -> None:
    """Make the set beside `folder` and move it there whole: another process may do the same."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        make(beside / "new")
        if folder.exists() and not complete(folder):
            folder.rename(beside / "damaged")
        (beside / "new").rename(folder)
    except OSError:
        # The other process was first; what it made is the same.
        if not complete(folder):
            raise UserError(f"{folder}: cannot be written. Remove it, and try again.") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Write the set into the folder that the one argument names.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = Path(arguments[0])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder. Name a new one.")
    make(folder)
    print(f"{folder}: {sum(COUNTS.values())} images, {', '.join(COUNTS)}; classes 0 to 9")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m aal_bench.data.scenes FOLDER")
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")

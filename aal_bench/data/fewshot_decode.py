"""Images of any size and mode to one array, converted as few-shot sets are, and a count of that.

Photographs: RGB, shorter side to the size wanted (bilinear), centre crop. Omniglot's drawings, of
1 bit: to grey, resized by Lanczos' filter, which antialiases (learn2learn's choice for 28 px; a
resize that stays at 1 bit drops pixels and breaks strokes), then inverted, so that strokes are 1 on
0 as in ProtoNet's code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from aal_bench.data.decode import open_image
from aal_bench.data.fewshot_splits import Part
from aal_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

BLOCK = 64
"""Images that a thread decodes at a time."""
THREADS = 8
GREY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")

Convert = Callable[["Image", int, "Counter[str]"], np.ndarray]


def decode(
    part: Part, size: int, convert: Convert, advance: Callable[[int], None]
) -> tuple[np.ndarray, Counter[str]]:
    """Decode a split into one array, by as many threads as torch may use, at most 8.

    Args:
        part: the split.
        size: side of the images wanted, in pixels.
        convert: `photograph` or `drawing`.
        advance: told of every so many images decoded.

    Returns:
        uint8 (N, 3, size, size) in the order of the part, and how many images were converted how.

    Raises:
        UserError: an image cannot be read or has more than 8 bits a channel; names it.
    """
    images = np.empty((len(part.rows), 3, size, size), np.uint8)
    # As the files lie, so that a shard is read once; each image goes to its own place.
    order = np.argsort(part.rows, kind="stable")

    def work(block: np.ndarray) -> Counter[str]:
        done: Counter[str] = Counter()
        for i in block:
            image = open_image(part.source, int(part.rows[i]))
            if image.mode not in ("RGB", *GREY, *COLOUR):
                raise UserError(
                    f"{part.source.where(int(part.rows[i]))}: {image.mode} image, which has more "
                    "than 8 bits a channel. Convert it to 8-bit RGB."
                )
            images[i] = convert(image, size, done)
        return done

    counts: Counter[str] = Counter()
    blocks = [order[first : first + BLOCK] for first in range(0, len(order), BLOCK)]
    with ThreadPoolExecutor(min(THREADS, torch.get_num_threads())) as pool:
        for block, done in zip(blocks, pool.map(work, blocks), strict=True):
            counts.update(done)
            advance(len(block))
    return images, counts


def photograph(image: Image, size: int, done: Counter[str]) -> np.ndarray:
    """RGB, shorter side to `size` (bilinear), centre crop: uint8 (3, size, size)."""
    from PIL.Image import Resampling

    if image.mode != "RGB":
        done["grey" if image.mode in GREY else image.mode] += 1
        if image.mode in ("P", "PA"):  # of a palette with transparency Pillow warns otherwise
            image = image.convert("RGBA")
        image = image.convert("RGB")
    if image.size != (size, size):
        done["size"] += 1
        image = _fit(image, size, Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def drawing(image: Image, size: int, done: Counter[str]) -> np.ndarray:
    """Dark strokes on light to light strokes on dark, in three equal channels."""
    from PIL.Image import Resampling

    done["drawing"] += 1
    grey = _fit(image.convert("L"), size, Resampling.LANCZOS)
    return np.broadcast_to(255 - np.asarray(grey), (3, size, size))


def notes(counts: Counter[str], size: int) -> tuple[str, ...]:
    """Say in one line what was converted; nothing where nothing was."""
    if counts["drawing"]:
        what = f"resized to {size}x{size} px (Lanczos) and inverted: strokes are 1"
        return (f"{counts['drawing']:,} drawings {what}",)
    said = [
        f"{counts[mode]:,} {mode} images made RGB" for mode in ("grey", *COLOUR) if counts[mode]
    ]
    if counts["size"]:
        said.append(f"{counts['size']:,} images of other sizes resized to {size}x{size} px")
    return ("; ".join(said),) if said else ()


def _fit(image: Image, size: int, resampling: Resampling) -> Image:
    """Bring the shorter side to `size` and cut out the centre, to the pixel as torchvision does."""
    shorter = min(image.size)
    if shorter != size:
        width, height = (size * side // shorter for side in image.size)
        image = image.resize((width, height), resampling)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))

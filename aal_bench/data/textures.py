"""Procedural textures, the same for a seed on every machine: backgrounds of the embedded scenes.

Random numbers are PCG64's raw stream, which numpy keeps stable (NEP 19); fields and mixtures are
whole numbers and Pillow's resampling, which rounds alike everywhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SINE = np.array([round(127.5 + 127.5 * math.sin(math.pi * i / 128)) for i in range(256)], np.uint8)
"""A wave of 256 steps in 0..255."""


class Dice:
    """Whole random numbers of one stream."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def between(self, low: int, high: int) -> int:
        """Return one of low..high, both included."""
        return low + int(self._bits.random_raw() % (high - low + 1))

    def bytes(self, *shape: int) -> np.ndarray:
        """Return uint8 of `shape`, every value as likely."""
        return (self._bits.random_raw(math.prod(shape)) >> 56).astype(np.uint8).reshape(shape)


def background(dice: Dice, side: int) -> Image:
    """Draw one of three textures in two or three colours, with fine grain: RGB (side, side)."""
    from PIL import Image

    fields = (_noise, _stripes, _blotches)
    field = fields[dice.between(0, 2)](dice, side)
    colours = [tuple((dice.bytes(3).astype(int) * 3 // 5 + 50).tolist()) for _ in range(3)]
    first, second, third = (Image.new("RGB", (side, side), colour) for colour in colours)
    image = Image.composite(second, first, Image.fromarray(field))
    # The third colour comes and goes slowly, and so does the light.
    image = Image.composite(third, image, Image.fromarray(_octave(dice, side, 3) // 2))
    light = _octave(dice, side, 2).astype(np.int16) // 5 - 25
    grain = dice.bytes(side, side).astype(np.int16) // dice.between(8, 20)
    pixels = np.asarray(image).astype(np.int16) + (light + grain - 8)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _octave(dice: Dice, side: int, cells: int) -> np.ndarray:
    """Return smooth noise of `cells` humps a side: uint8 (side, side)."""
    from PIL import Image

    grid = Image.fromarray(dice.bytes(cells + 2, cells + 2))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))


def _noise(dice: Dice, side: int) -> np.ndarray:
    """Noise of five octaves, each with two thirds of the height of the one before."""
    heights = (81, 54, 36, 24, 16)
    first = dice.between(3, 6)
    total = np.zeros((side, side), np.int64)
    for number, height in enumerate(heights):
        total += height * _octave(dice, side, first << number).astype(np.int64)
    return _stretch(total // sum(heights), dice.between(2, 4))


def _stripes(dice: Dice, side: int) -> np.ndarray:
    """Stripes of a random direction and width, bent by slow noise."""
    angle = math.pi * dice.between(0, 179) / 180
    period = dice.between(24, 110)
    # Phase in 256ths of a period, kept in 2^-8 of that.
    across, down = (round(65536 * part / period) for part in (math.cos(angle), math.sin(angle)))
    row, column = np.mgrid[:side, :side]
    bend = _octave(dice, side, dice.between(2, 5)).astype(np.int64) * dice.between(64, 640)
    return SINE[(column * across + row * down + bend >> 8) & 255]


def _blotches(dice: Dice, side: int) -> np.ndarray:
    """Noise of one size with a steep edge at half its height, and spots of a smaller one on it."""
    cells = dice.between(5, 14)
    large = _stretch(_octave(dice, side, cells).astype(np.int64), 9).astype(np.int64)
    small = _stretch(_octave(dice, side, 4 * cells).astype(np.int64) - 60, 9).astype(np.int64)
    return np.maximum(large, small * 3 // 5).astype(np.uint8)


def _stretch(field: np.ndarray, factor: int) -> np.ndarray:
    return ((field - 128) * factor + 128).clip(0, 255).astype(np.uint8)

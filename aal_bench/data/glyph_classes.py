"""The 240 characters of `glyphs`, and which of them train, validate and test.

Chosen once, walking through each script in the order of code points, by this rule with a margin (at
0.33 and 0.52), so that it holds however the fonts are drawn; a test draws them otherwise and looks:

- A letter or digit without a Unicode decomposition, so that no class is another one with an accent,
  of which the fonts of `glyphs.fonts` give at least `RENDERINGS` different images.
- No two alike in most of the fonts that have both. Every image is brought to one size, so an ``o``
  and an ``O`` are one form. Alike in a font: the sum of squared differences of the two 28 px images
  is at most `ALIKE` times the smaller of their sums of squares; for the capital and small letter of
  a pair at most `CASE` times, because their strokes, scaled differently, differ in width.
"""

from __future__ import annotations

import unicodedata

import numpy as np

RENDERINGS = 8
"""Fewest different images of a class before any is turned or shifted."""
ALIKE = 0.25
CASE = 0.45
CHARACTERS = {
    "digits": "0123456789",
    "Latin": "ABCDEGHIJKLMNOPQRSTUVWXYZabdefgjkmnrtyÆØÞßæðþ",
    "Greek": "ΓΞΣΦΨΩαβγεζηικλμνξπρςστυφχω",
    "Cyrillic": "ДЖЛУЦЧШЩЪЫЬЭЮЯзмфщЂЉЊЋђіћџ",
    "Armenian": "ԳԴԵԶԸԹԺԻԽԾԿՀՃՄՆՇՈՉՊՌՎՒՔՖադզէըթլխկձճմյչպջվքֆ",
    "Georgian": "აბგდეზთიკლპჟრსტუფქყშჩცძწჭჯჰჱჲჳჴჵႠႡႢႣႤႥႦႧႨႩႪႫႬႭႮႯႰႱႲႳႴႵႷႸႹႼႽႿჀჁჂჄჅ",
    "Lao": "ກຂຄງຈຊຍດຖທນປຜຝພມຣລວສຮຯະາ",
}
COUNTS = {"train": 144, "validation": 36, "test": 60}
"""Classes of each split: 60, 15 and 25 %."""
SPLIT_SEED = 0


def split() -> dict[str, str]:
    """Return the characters of each split, in the order of `CHARACTERS`; a fixed random division.

    Drawn from PCG64's raw stream, which numpy keeps stable (NEP 19).
    """
    characters = "".join(CHARACTERS.values())
    keys = np.random.PCG64(np.random.SeedSequence(SPLIT_SEED)).random_raw(len(characters))
    parts = np.split(np.argsort(keys, kind="stable"), np.cumsum([*COUNTS.values()])[:-1])
    return {
        name: "".join(characters[i] for i in sorted(part))
        for name, part in zip(COUNTS, parts, strict=True)
    }


def name(character: str) -> str:
    """The class name: ``LATIN SMALL LETTER A``, as Unicode has it."""
    return unicodedata.name(character)

"""The embedded glyphs: the list of classes keeps its rule, and the images are what they claim."""

import hashlib
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from matplotlib.ft2font import FT2Font
from PIL import Image
from scipy.ndimage import affine_transform
from scipy.spatial.distance import cdist

from aal_bench.config import Episodes
from aal_bench.data import glyph_classes, glyphs
from aal_bench.data.fewshot import load
from aal_bench.data.sources import Pixels
from aal_bench.errors import UserError

CHARACTERS = "".join(glyph_classes.CHARACTERS.values())


@pytest.fixture
def task(make_task):
    def make(classes: int = 144, size: int = 28):
        toy = make_task("glyphs", classes, size)
        return toy.model_copy(update={"family": "fewshot", "episodes": Episodes()})

    return make


@pytest.fixture(scope="module")
def drawn() -> dict[str, Pixels]:
    return glyphs.read(28)


def codes(path: Path) -> set[int]:
    """What a font draws: fontTools reads its table; TeX's have only ASCII where Unicode has it."""
    with TTFont(path) as font:
        known = set(font.getBestCmap())
    return {code for code in known if code < 128} if path.name.startswith("cm") else known


def matplotlib_image(font: FT2Font, character: str) -> np.ndarray:
    """Drawn by matplotlib: the ink, its longer side 80 of 112 px, centred, at a quarter; 0..255."""
    font.set_text(character)
    font.draw_glyphs_to_bitmap()
    grey = Image.fromarray(np.array(font.get_image()))
    cut = grey.crop(grey.point(lambda level: level >= 128 and 255).getbbox())
    width, height = (max(1, round(80 * side / max(cut.size))) for side in cut.size)
    image = Image.new("L", (112, 112))
    image.paste(cut.resize((width, height)), ((112 - width) // 2, (112 - height) // 2))
    return np.asarray(image.reduce(4), float)


def alike(images: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """For each pair of (n, 784) images: squared difference over the smaller sum of squares."""
    energy = (images**2).sum(1)
    return cdist(images, images, "sqeuclidean") <= limit * np.minimum.outer(energy, energy)


@pytest.fixture(scope="module")
def redrawn() -> list[dict[int, np.ndarray]]:
    """For each font its own images of the classes it has, by the class's place in the list."""
    found = []
    for path in glyphs.fonts():
        font, known = FT2Font(str(path)), codes(path)
        font.set_size(128, 72)
        places = [i for i, one in enumerate(CHARACTERS) if ord(one) in known]
        found.append({i: matplotlib_image(font, CHARACTERS[i]) for i in places})
    return found


def test_no_two_classes_are_alike_in_most_of_the_fonts_that_have_both(redrawn) -> None:
    capitals = np.array([one.upper() for one in CHARACTERS])
    same_letter = capitals[:, None] == capitals[None]
    limit = np.where(same_letter, glyph_classes.CASE, glyph_classes.ALIKE)
    both, similar = np.zeros((2, len(CHARACTERS), len(CHARACTERS)), int)
    for font in redrawn:
        pairs = np.ix_(list(font), list(font))
        images = np.stack([*font.values()]).reshape(len(font), -1)
        both[pairs] += 1
        similar[pairs] += alike(images, limit[pairs])
    assert (both > 0).all()
    found = np.argwhere(np.triu(2 * similar > both, 1))
    assert [CHARACTERS[i] + CHARACTERS[j] for i, j in found] == []


@pytest.mark.parametrize("form", ["AΑАΛ", "oOοΟоОօՕ", "cCсС", "sSѕЅ", "vV", "wW", "xXхХ", "zZΖ"])
def test_of_characters_of_one_form_one_is_a_class(form: str) -> None:
    assert len(set(form) & set(CHARACTERS)) <= 1


def test_a_class_is_a_letter_or_digit_by_itself_in_enough_fonts(redrawn) -> None:
    assert len(set(CHARACTERS)) == len(CHARACTERS) == 240
    for i, one in enumerate(CHARACTERS):
        assert unicodedata.category(one) in {"Lu", "Ll", "Lo", "Nd"}
        assert unicodedata.normalize("NFKD", one) == one
        different = {font[i].tobytes() for font in redrawn if i in font}
        assert len(different) >= glyph_classes.RENDERINGS


def test_the_classes_are_divided_60_15_and_25_per_cent() -> None:
    shares = {split: len(names) / 240 for split, names in glyphs.names().items()}
    assert shares == {"train": 0.6, "validation": 0.15, "test": 0.25}
    everyone = [name for names in glyphs.names().values() for name in names]
    assert sorted(everyone) == sorted(unicodedata.name(one) for one in CHARACTERS)


def test_every_class_has_40_images_no_two_of_them_equal(drawn) -> None:
    for images, labels in ((part.images, part.labels) for part in drawn.values()):
        assert np.bincount(labels).tolist() == [40] * (len(labels) // 40)
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_images_are_white_strokes_on_black_in_three_equal_channels_at_one_size(drawn) -> None:
    for images in (part.images for part in drawn.values()):
        assert images.dtype == np.uint8
        assert (images[:, 0] == images[:, 1]).all()
        assert (images[:, 0] == images[:, 2]).all()
        assert images.max((1, 2, 3)).min() == 255
        for upright in images[::40, 0] > 0:
            rows, columns = np.nonzero(upright)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20


def test_drawing_agrees_with_matplotlibs(redrawn) -> None:
    ours = glyphs.draw(CHARACTERS, 28)
    for i, one in enumerate(CHARACTERS):
        first = redrawn[0][i]
        difference = np.abs(glyphs.reduce(ours[one][0]) - first).sum() / first.sum()
        assert difference < 0.25, one


def test_a_character_is_drawn_by_the_fonts_that_have_it_and_by_no_other() -> None:
    few, none = "\u2d65", "\u0378"  # a letter of Tifinagh, and a code point without a character
    having = [path.name for path in glyphs.fonts() if ord(few) in codes(path)]
    assert 0 < len(having) < len(glyphs.fonts())
    drawn = glyphs.draw(few + none + " ", 28)
    assert len(drawn[few]) == len(having)
    assert drawn[none] == drawn[" "] == []


def test_copies_are_turned_about_the_centre_and_shifted_whole(drawn) -> None:
    bitmap = glyphs.draw("R", 28)["R"][0]
    turned = glyphs._Turned(28)
    assert (turned.copy(bitmap, 0, 0, 0) == bitmap).all()
    centre = np.full(2, (len(bitmap) - 1) / 2)
    for angle in (-10, 3, 10):
        cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        matrix = np.array([[cosine, -sine], [sine, cosine]])
        offset = centre - matrix @ (centre + np.array([5, -8]))
        expected = affine_transform(bitmap.astype(np.uint8), matrix, offset, order=0)
        copy = turned.copy(bitmap, angle, 5, -8)
        assert (copy != expected).mean() < 1e-3  # ties between two pixels
        # Shifted round the edge is shifted off it: nothing comes near.
        assert not turned.copy(bitmap, angle, turned.reach, turned.reach)[[0, -1]].any()


def test_the_task_loads_the_embedded_set(task) -> None:
    data = load(task(), None)
    assert data.source == "embedded"
    assert data.official
    assert data.notes == ()
    assert (len(data.train), len(data.validation), len(data.test)) == (5760, 1440, 2400)
    assert data.class_names["test"][0] == "DIGIT FOUR"
    assert data.test.pixels(torch.arange(1)).shape == (1, 3, 28, 28)
    assert glyphs.read(14)["test"].images.shape == (2400, 3, 14, 14)


def test_another_load_and_another_process_draw_the_same_pixels(drawn) -> None:
    script = (
        "import hashlib; from aal_bench.data import glyphs; "
        "print(hashlib.sha256(glyphs.read(28)['test'].images).hexdigest())"
    )
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    images = drawn["test"].images
    assert other == hashlib.sha256(images).hexdigest()
    assert (glyphs.read(28)["test"].images == images).all()


def test_what_does_not_fit_is_refused(task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embedded; omit --data-dir"):
        load(task(), tmp_path)
    with pytest.raises(UserError, match=r"144 training classes .*, but task toy has 64"):
        load(task(classes=64), None)
    with pytest.raises(UserError, match=r"data\.size is 8, but the least is 14"):
        load(task(size=8), None)


def test_a_font_that_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr(glyphs, "FONTS", ("DejaVuSans", "Bodoni"))
    with pytest.raises(UserError, match=r"no Bodoni\.ttf\. Install matplotlib again"):
        glyphs.read(28)

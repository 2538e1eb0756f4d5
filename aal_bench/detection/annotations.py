"""Whether a file holds the annotations that MMDetection's readers take it to hold.

VOC: one XML for each image, and lists of images. COCO: one JSON. No toolkit is needed to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from math import isfinite
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from aal_bench.errors import UserError, did_you_mean


def another_format(path: str, reason: str) -> UserError:
    """The error of a file that is of another kind than its place says."""
    return UserError(f"annotations of another format: {path}: {reason}.")


def check_list(path: str) -> None:
    """Refuse a list of VOC's ``ImageSets`` that is no list of names, or names one twice.

    Raises:
        UserError: names the file, and the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise another_format(path, "VOC's list of images is text") from None
    if text.lstrip()[:1] in {"{", "[", "<"}:
        raise another_format(path, "VOC's list of images has a name without ending on each line")
    names = text.splitlines()
    for number, name in enumerate(names, 1):
        if not name or name != name.strip():
            raise UserError(f"{path}: line {number} is empty or padded: {name!r}. Mend it.")
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path}: lists {twice!r} twice. Remove a line.")


def read_xml(path: str, classes: Collection[str]) -> ElementTree.Element:
    """Parse a VOC file whose every object is of one of `classes`.

    Raises:
        UserError: there is none, it is of another format, or an object is of another class.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise another_format(path, f"not XML ({error})") from None
    except OSError as error:
        beside = sorted(Path(path).parent.glob(f"{Path(path).stem}.*"))
        if beside:
            raise another_format(str(beside[0]), f"VOC's is {Path(path).name}") from None
        raise UserError(f"{path}: {error.strerror}") from None
    if root.tag != "annotation":
        raise another_format(path, f"VOC's XML holds <annotation>, this one <{root.tag}>")
    for thing in root.findall("object"):
        name = thing.findtext("name")
        if name is None:
            raise UserError(f"{path}: an object without <name>. Mend or remove it.")
        if name not in classes:
            raise _unknown(f"{path}: class", name, list(classes))
    return root


def size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(width, height) as a VOC file states them; 0: not stated; None: not as whole numbers."""
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return width, height


def check_json(path: str, tree: dict[str, Any], classes: Sequence[str]) -> None:
    """Refuse a COCO file that is none, that contradicts itself, or whose classes are others.

    Args:
        path: for the error.
        tree: what it holds; pycocotools has indexed it.
        classes: the class list.

    Raises:
        UserError: names the file and the class, category or annotation.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree.get(key), list):
            raise another_format(path, f"COCO's JSON of instances has {key}")
    if not all("file_name" in one for one in tree["images"]):
        raise another_format(path, "an image without file_name")
    for key in ("images", "annotations", "categories"):
        if len({one["id"] for one in tree[key]}) != len(tree[key]):
            raise UserError(f"{path}: two of its {key} have one id. Number them anew.")
    _check_categories(path, tree, list(classes))
    for annotation in tree["annotations"]:
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise UserError(
                f"{path}: annotation {annotation['id']!r} has no bbox of four numbers. Mend it."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _check_categories(path: str, tree: dict[str, Any], classes: list[str]) -> None:
    names = {one["id"]: str(one.get("name")) for one in tree["categories"]}
    used = {one["category_id"] for one in tree["annotations"]}
    if not used <= set(names):
        unlisted = sorted(map(str, used - set(names)))[0]
        raise UserError(f"{path}: annotations of category {unlisted}, which it does not list")
    for number, name in names.items():
        if number in used and name not in classes:
            raise _unknown(f"{path}: category", name, classes)
    known = list(names.values())
    for name in classes:
        if name not in known:
            raise UserError(
                f"{path}: class {name!r} of the list is none of its {len(known)} categories "
                f"({_shown(known)}).{did_you_mean(name, known)} Give --classes."
            )
    listed = [name for name in known if name in classes]
    if len(set(listed)) != len(listed):
        raise UserError(f"{path}: two categories of one name. Rename or merge them.")
    if listed != classes:
        # MMDetection's reader and metric number the classes by the file, whatever the list's order.
        raise UserError(
            f"{path}: its categories are in another order than the class list. "
            f"Give --classes {','.join(listed)}"
        )


def _unknown(where: str, name: str, classes: list[str]) -> UserError:
    return UserError(
        f"{where} {name!r} is none of the {len(classes)} ({_shown(classes)})."
        f"{did_you_mean(name, classes)} Mend the annotations, or give --classes."
    )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

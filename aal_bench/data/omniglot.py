"""Omniglot as its author publishes it, two parts by alphabet, divided as Vinyals et al. (2016) did.

The split is not part of the set; ``classes.csv`` or the split's three text files say it
(`class_lists`). Without ``--data-dir`` torchvision downloads and checks the images, and the text
files come from jakesnell/prototypical-networks, the list that ProtoNet and those after it use.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from aal_bench.data import class_lists
from aal_bench.data.fewshot_splits import Listed
from aal_bench.data.folders import ImageFiles, has_classes
from aal_bench.data.torchvision_native import impatient
from aal_bench.errors import UserError

PARTS = ("images_background", "images_evaluation")
FOLDERS = (".", "omniglot-py", "python")
"""Where the parts lie: in the folder itself, or as torchvision or the author unpacks them."""
LISTS = (
    "https://raw.githubusercontent.com/jakesnell/prototypical-networks/"
    "c9bb4d258267c11cb6e23f0a19242d24ca98ad8a/data/omniglot/splits/vinyals/"
)
VINYALS = "f20b5dfa764a16963f33d7e6f4eb957bf16484849f90dcfe6544ac3a0e04550b"
"""`class_lists.digest` of the split of Vinyals et al.: 1,028, 172 and 423 classes."""


def native(data_dir: Path) -> Path | None:
    """Return the folder in or under `data_dir` that holds a part of Omniglot."""
    roots = (data_dir / folder for folder in FOLDERS)
    return next((root for root in roots if any((root / part).is_dir() for part in PARTS)), None)


def read(root: Path, data_dir: Path) -> dict[str, Listed]:
    """Read ``<part>/<alphabet>/<character>/*.png`` and divide the characters as the list says.

    Raises:
        UserError: a part or the list of classes is missing, or they do not fit each other.
    """
    for part in PARTS:
        if not has_classes(root / part):
            raise UserError(f"{root}: no {part}/<alphabet>/<character>/. Unpack {part}.zip there.")
    classes = class_lists.look(data_dir, root)
    if classes is None:
        raise UserError(
            f"{data_dir}: Omniglot's images, but no list of the split's classes. Put "
            f"{', '.join(class_lists.TEXTS.values())} there "
            "(jakesnell/prototypical-networks, data/omniglot/splits/vinyals/)."
        )
    characters = [home for part in PARTS for home in sorted((root / part).glob("*/*/"))]
    names = tuple(f"{home.parent.name}/{home.name}" for home in characters)
    samples = [
        (str(file), label)
        for label, home in enumerate(characters)
        for file in sorted(home.glob("*.png"))
    ]
    source = ImageFiles(root, samples)
    return class_lists.assign(source, source.labels, names, classes)


def download(root: Path) -> dict[str, Listed]:
    """Read Omniglot from `root`, downloaded when it is not (completely) there.

    Raises:
        UserError: it cannot be downloaded or written; says what was tried and what to put where.
    """
    from torchvision.datasets import Omniglot

    folder = root / Omniglot.folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with impatient():
            for part in PARTS:
                Omniglot(str(root), background=part == PARTS[0], download=True)
                _unpack(folder / f"{part}.zip", folder)
            _fetch_lists(folder)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"omniglot could not be downloaded from {Omniglot.download_url_prefix} and {LISTS} "
            f"to {folder} ({reason}).\n"
            f"Put {' and '.join(f'{part}.zip' for part in PARTS)} and "
            f"{', '.join(class_lists.TEXTS.values())} there, or give --data-dir with them unpacked."
        ) from None
    return read(folder, folder)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack again where an earlier attempt was interrupted: torchvision looks at the zip only."""
    with zipfile.ZipFile(archive) as members:
        files = [member for member in members.infolist() if not member.is_dir()]
        whole = all(
            (path := folder / member.filename).is_file() and path.stat().st_size == member.file_size
            for member in files
        )
        if not whole:
            members.extractall(folder)


def _fetch_lists(folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    texts = [folder / name for name in class_lists.TEXTS.values()]
    if all(text.is_file() for text in texts) and _is_vinyals(folder):
        return
    for text in texts:
        text.unlink(missing_ok=True)
        download_url(LISTS + text.name, str(folder), text.name)
    if not _is_vinyals(folder):
        for text in texts:
            text.unlink()
        raise RuntimeError("the lists of classes are not the published split")


def _is_vinyals(folder: Path) -> bool:
    try:
        return class_lists.digest(class_lists.read_texts(folder)) == VINYALS
    except UserError:  # not even a list
        return False

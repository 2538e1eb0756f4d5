"""Reader of class folders: ``{train,test|val}/<class>/`` images, classes in alphabetical order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aal_bench.data.sources import Found, stamp_file
from aal_bench.errors import UserError


def has_classes(folder: Path) -> bool:
    """Tell whether `folder` holds folders, as a split of this layout does."""
    return folder.is_dir() and any(child.is_dir() for child in folder.iterdir())


def read(folder: Path, test_split: str) -> Found:
    """Read ``train/<class>/`` and ``<test_split>/<class>/``.

    Raises:
        UserError: a class folder without images, or other classes in the two splits.
    """
    train, names = read_split(folder / "train")
    test, test_names = read_split(folder / test_split)
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise UserError(
            f"{folder}: train/ and {test_split}/ must hold the same class folders; only one has "
            f"{', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}."
        )
    return Found(train, test, names, "folders")


def read_split(folder: Path) -> tuple[ImageFiles, tuple[str, ...]]:
    """List the images of one split, and its classes.

    Raises:
        UserError: a class folder without images.
    """
    from torchvision.datasets import ImageFolder

    try:
        listing = ImageFolder(folder)
    except FileNotFoundError as error:
        # torchvision's first sentence names the classes without a valid file.
        reason = str(error).split(". ")[0].split("\n")[0]
        raise UserError(f"{folder}: {reason}. Add images, or remove the empty folder.") from None
    return ImageFiles(folder, listing.samples), tuple(listing.classes)


class ImageFiles:
    """The image files of one split, in torchvision's order (class by class, then by name).

    Args:
        folder: the split's folder.
        samples: (path, label) as `torchvision.datasets.ImageFolder` lists them.
    """

    def __init__(self, folder: Path, samples: list[tuple[str, int]]) -> None:
        self.folder = folder
        # An array, not a list: a million Python strings would be copied into every worker.
        self.names = np.array([str(Path(path).relative_to(folder)) for path, _ in samples])
        self.labels = np.array([label for _, label in samples], np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> bytes:
        """Return the file's bytes."""
        return (self.folder / str(self.names[i])).read_bytes()

    def where(self, i: int) -> str:
        """Return the file's path."""
        return str(self.folder / str(self.names[i]))

    def stamp(self) -> list[list[str]]:
        """Return relative path, size and time of every file."""
        return [[str(name), *stamp_file(self.folder / str(name))[1:]] for name in self.names]

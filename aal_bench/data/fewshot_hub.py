"""Few-shot sets on the Hugging Face Hub, in place of the toolkits' dead or unchecked downloads."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import NamedTuple

from aal_bench.errors import UserError
from aal_bench.paths import cache_folder


class Home(NamedTuple):
    """Where a set lies on the Hub: Parquet shards, or one tar archive of images."""

    repository: str
    archive: str | None = None


HOMES = {
    "mini-imagenet": Home("GATE-engine/mini_imagenet"),
    "cifar-fs": Home("GATE-engine/cifarfs"),
    "tiered-imagenet": Home("pancake/few_shot_datasets", "tiered_imagenet.tar"),
}


def fetch(name: str) -> Path:
    """Return the folder of the set `name`, downloaded (once) into the cache.

    Raises:
        UserError: it cannot be downloaded or unpacked; says what was tried and what to put where.
    """
    home = HOMES[name]
    unpacked = cache_folder() / name
    if home.archive is not None and unpacked.is_dir():
        return _only_child(unpacked)
    try:
        snapshot = _snapshot(home)
        if home.archive is None:
            return snapshot
        _unpack(snapshot / home.archive, unpacked)
    # Whichever HTTP library the Hub's client uses, its errors are of that library's own classes.
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        what = f"{home.archive} of " if home.archive else ""
        raise UserError(
            f"{name} could not be downloaded from {what}the Hugging Face dataset {home.repository} "
            f"to {cache_folder()} ({reason}).\n"
            "Give --data-dir with {train,validation,test}-*.parquet or {train,val,test}/<class>/."
        ) from None
    return _only_child(unpacked)


def _snapshot(home: Home) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = {
        "repo_id": home.repository,
        "repo_type": "dataset",
        "allow_patterns": [home.archive or "*.parquet"],
        "cache_dir": str(cache_folder() / "hub"),
    }
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(snapshot_download(**wanted))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack completely or not at all, and nothing outside `folder`; then drop the archive."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(archive) as members:
            members.extractall(partial, filter="data")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for file in (archive.resolve(), archive):
        file.unlink(missing_ok=True)


def _only_child(folder: Path) -> Path:
    """Archives often hold one folder that holds everything."""
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    return children[0] if len(children) == 1 and children[0].is_dir() else folder

"""Fault: installed robustbench is another than its version says; ``benchmark`` cannot be imported.

The wheel of torchattacks 3.5.1 carries, besides its own package, 25 files of an old ``robustbench``
(``eval.py`` commented out as a whole, a model zoo without the entries of 2023 and later). Whichever
of the two packages is installed last wins, file by file, and installers give no order. Found by
comparing the files with the hashes in robustbench's own ``RECORD``; not reported upstream so far.

Repair: none in the process, since the right files are nowhere on the machine. `repair` raises the
error that names the command; installing robustbench again after torchattacks is what mends it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from aal_bench.errors import UserError


def overwritten_files() -> list[str]:
    """Return robustbench's own files whose bytes are not those that its wheel recorded."""
    try:
        files = distribution("robustbench").files or []
    except PackageNotFoundError:
        return []
    return sorted(str(f) for f in files if f.parts[0] == "robustbench" and _differs(f))


def fault_present() -> bool:
    """Whether a file of the installed robustbench was replaced by another package's."""
    return bool(overwritten_files())


def repair() -> None:
    """Raise the error that names the mend, if files were replaced.

    Raises:
        UserError: with the number of files and the command.
    """
    changed = overwritten_files()
    if changed:
        version = distribution("robustbench").version
        raise UserError(
            f"{len(changed)} files of robustbench were overwritten by another package "
            f"(torchattacks ships an old copy), among them {changed[0]}.\n"
            f"Mend: {mend(version)}"
        )


def mend(version: str) -> str:
    """The command that puts robustbench's own files back."""
    return f"pip install --force-reinstall --no-deps robustbench=={version}"


def _differs(file: PackagePath) -> bool:
    if file.hash is None or file.suffix != ".py":
        return False
    try:
        content = Path(str(file.locate())).read_bytes()
    except FileNotFoundError:
        return True
    digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest())
    return digest.rstrip(b"=").decode() != file.hash.value

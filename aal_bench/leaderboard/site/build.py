"""Writing the site: everything is rendered before the first file changes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aal_bench import __version__
from aal_bench.errors import UserError
from aal_bench.leaderboard.board import Board
from aal_bench.leaderboard.cells import PASSES, rules
from aal_bench.leaderboard.site import assets, names
from aal_bench.leaderboard.site.pages import pages
from aal_bench.leaderboard.site.show import FILTERS

MARKER = "aal-bench-site.json"
"""Lists the files of a site: a later build removes those that it no longer has, and only those."""
TEMPLATES = Path(__file__).parent / "templates"


def build(boards: list[Board], out: Path) -> list[Path]:
    """Write the boards as a static site that opens from ``out/index.html``.

    Equal boards give equal bytes. Files in `out` that no build wrote are left as they are.

    Args:
        boards: as `board.boards` gives them; may be empty.
        out: a new or empty folder, or an earlier site, which is brought up to date.

    Returns:
        The written files, the index first.

    Raises:
        UserError: `out` holds something else, leads elsewhere by a symbolic link or cannot be
            written; a library is missing; an entry cannot name a page.
    """
    earlier = _earlier(out)
    names.check(boards)
    files = _render(boards) | assets.files()
    for path in {*files, *earlier, MARKER}:
        _inside(out, path)
    try:
        _write(out, files, earlier)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    return [out / path for path in (*files, MARKER)]


def _render(boards: list[Board]) -> dict[str, bytes]:
    # Submitted text is on every page: nothing reaches HTML unescaped, whatever a template's name.
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= FILTERS | {"href": names.href, "web": names.web}
    templates.globals |= {
        "board_file": names.board_file,
        "entry_file": names.entry_file,
        "version": __version__,
        "rules": rules,
        "passes_rule": PASSES,
    }
    return {
        page.path: templates.get_template(page.template).render(page.context).encode()
        for page in pages(boards)
    }


def _earlier(out: Path) -> list[str]:
    """The files of the site that `out` holds; [] for a new or empty folder."""
    if not out.exists():
        return []
    if not out.is_dir():
        raise UserError(f"{out}: is a file; the site needs a folder")
    try:
        listed = json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]
        return [str(path) for path in listed]
    except FileNotFoundError:
        if any(out.iterdir()):
            raise UserError(
                f"{out}: not empty, and no site of aal-bench; name a new folder"
            ) from None
        return []
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out / MARKER}: damaged; remove the folder and build anew") from None


def _inside(out: Path, path: str) -> None:
    pure = PurePosixPath(path)
    # A link inside the folder could lead a write, or a removal, to somebody's other files.
    parts = [out.joinpath(*pure.parts[:end]) for end in range(1, len(pure.parts) + 1)]
    if pure.is_absolute() or ".." in pure.parts or any(part.is_symlink() for part in parts):
        raise UserError(f"{out / path}: would leave the site's folder; name a new folder")


def _write(out: Path, files: dict[str, bytes], earlier: Iterable[str]) -> None:
    # Until all is written the marker names old and new files: an interrupted build can be repeated.
    out.mkdir(parents=True, exist_ok=True)
    _mark(out, {*files, *earlier})
    for path, content in files.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path in sorted({*earlier} - {*files}):
        (out / path).unlink(missing_ok=True)
        folder = (out / path).parent
        if folder != out and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    _mark(out, files)


def _mark(out: Path, files: Iterable[str]) -> None:
    text = json.dumps({"format": "aal-bench site 1", "files": sorted(files)}, indent=1)
    (out / MARKER).write_text(text + "\n", encoding="utf-8")

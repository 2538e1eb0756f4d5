"""The committed boards: ``BOARD.md`` and ``board.json`` beside the entries. No torch.

They hold the entries only; what others published lies in ``reported/``. Equal entries give equal
bytes, so that a stale file is one that differs.
"""

from __future__ import annotations

import json
from pathlib import Path

from aal_bench.files import write_text
from aal_bench.leaderboard.board import boards
from aal_bench.leaderboard.board_json import tree
from aal_bench.leaderboard.markdown import markdown


def texts(root: Path) -> dict[str, str]:
    """Name -> text of the files that belong to the entries below `root`.

    Raises:
        UserError: an entry cannot be read or ranked.
    """
    found = boards(root)
    return {
        "BOARD.md": markdown(found),
        "board.json": json.dumps(tree(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }


def stale(root: Path) -> list[str]:
    """Names of the files below `root` that are missing, or differ from what `write` would write."""
    return [name for name, text in texts(root).items() if _held(root / name) != text.encode()]


def write(root: Path) -> list[Path]:
    """Write both files, each whole or not at all.

    Returns:
        Their paths.
    """
    paths = []
    for name, text in texts(root).items():
        write_text(root / name, text)
        paths.append(root / name)
    return paths


def _held(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None

"""What the pages load: this site's style and script, and two libraries of installed packages.

DataTables (from itables) sorts and filters the tables, plotly.js draws. Both are copied when a site
is built and are no part of this repository. A page opened from a folder may not import modules, so
DataTables' module becomes a plain script.
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from aal_bench.errors import UserError

FOLDER = "assets"
_STATIC = Path(__file__).parent / "static"
_EXPORT = re.compile(r"\bexport\s*\{([^{}]*)\}\s*;")
_NOTICE = "/*! Bundled license information:"


def files() -> dict[str, bytes]:
    """Name inside the site -> content.

    Raises:
        UserError: a library is not installed, or is not built as this code knows it.
    """
    tables = _package("itables") / "html"
    found = {f"{FOLDER}/{path.name}": path.read_bytes() for path in sorted(_STATIC.iterdir())}
    module = _read(tables / "dt_bundle.js").decode("utf-8")
    found[f"{FOLDER}/datatables.js"] = as_script(module).encode()
    found[f"{FOLDER}/datatables.css"] = _read(tables / "dt_bundle.css")
    plotly = _package("plotly") / "package_data" / "plotly.min.js"
    found[f"{FOLDER}/plotly.min.js"] = _read(plotly)
    found[f"{FOLDER}/licences.txt"] = _licences(module).encode()
    return found


def as_script(module: str) -> str:
    """DataTables' ES module as a script that sets ``window.DataTable``.

    Raises:
        UserError: it imports something, or has no default export.
    """
    exports = list(_EXPORT.finditer(module))
    names = [pair.split(" as ") for pair in exports[-1][1].split(",")] if exports else []
    default = [pair[0].strip() for pair in names if pair[-1].strip() == "default"]
    if len(default) != 1 or re.search(r"\bimport\s*[{*\"'(]|\bimport\.meta\b", module):
        raise UserError(
            f"itables {metadata.version('itables')}: its DataTables bundle is of another form than"
            " the one known here; install the version of requirements.lock"
        )
    start, end = exports[-1].span()
    body = f"{module[:start]}window.DataTable={default[0]};{module[end:]}"
    return f'(()=>{{"use strict";{body}\n}})();\n'


def _package(name: str) -> Path:
    # Found, not imported: importing plotly or itables takes seconds and nothing of them is called.
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the site needs {name}, which is not installed: pip install {name}")
    return Path(spec.submodule_search_locations[0])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; install the versions of requirements.lock"
        ) from None


def _licences(module: str) -> str:
    notice = module[module.rfind(_NOTICE) :] if _NOTICE in module else ""
    parts = [
        "This folder holds copies of two libraries, each under the MIT licence.",
        "plotly.min.js: plotly.js, as distributed in the Python package plotly.",
        _licence("plotly"),
        "datatables.js, datatables.css: DataTables with its extensions, jQuery and JSZip, as"
        " distributed in the Python package itables.",
        _licence("itables"),
        "The notices of what is bundled there; the MIT licence above applies to each:",
        notice,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _licence(package: str) -> str:
    installed = metadata.distribution(package)
    names = installed.metadata.get_all("License-File") or []
    texts = [installed.read_text(f"licenses/{name}") or installed.read_text(name) for name in names]
    return "\n\n".join(text for text in texts if text)

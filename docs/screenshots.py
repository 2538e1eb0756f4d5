"""Take the pictures of the boards in docs/images anew: ``python docs/screenshots.py``.

Builds the site from the committed entries and photographs it in headless Chromium (Debian:
``apt-get install chromium``; elsewhere, name the executable in ``$CHROMIUM``).
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from aal_bench.leaderboard.board import boards
from aal_bench.leaderboard.site.build import build
from aal_bench.paths import data_folder

IMAGES = Path(__file__).parent / "images"
QUIET = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
PICTURES = {
    "board": ("cifar10-1k-Linf.html", 1280, 860, "light"),
    "board-dark": ("digits-Linf.html", 1280, 860, "dark"),
    "board-phone": ("digits-Linf.html", 375, 760, "light"),
    "entry": ("{entry}", 1280, 1000, "light"),
}
"""Name -> (page, width, height, colour scheme)."""


def main() -> None:
    """Build, photograph, and say what was written."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit("error: no chromium found: apt-get install chromium, or set CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = Path(folder) / "site"
        build(boards(data_folder("leaderboards")), site)
        entry = min(site.glob("cifar10-1k-Linf/pgd-*.html")).relative_to(site).as_posix()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=[*QUIET, *sandbox])
        for name, (page, width, height, scheme) in PICTURES.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            tab = context.new_page()
            tab.goto((site / page.format(entry=entry)).as_uri())
            tab.wait_for_timeout(1500)
            tab.screenshot(path=IMAGES / f"{name}.png")
            print(IMAGES / f"{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()

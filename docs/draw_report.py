"""Draw the report page down to its leaderboard as it looks in a browser: python docs/draw_report.py RESULTS OUTPUT.png.

RESULTS is a results folder or an archive; Debian's chromium does the drawing. The picture holds the text of the
leaderboard that it shows, by which a test tells whether it is of today's results.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin
from playwright.sync_api import sync_playwright

from harness import __version__
from harness.archive import open_results
from harness.report.page.model import make_model
from harness.report.page.render import render

WIDTH = 1280
MARGIN = 3
"""Pixels below the leaderboard."""
SHOWN = "shown"
"""What the text is called in the picture."""


def page(folder: Path) -> str:
    """The report of all suites in a folder."""
    results = open_results(folder)
    return render(make_model(results, results.plans()), "lspc-bench report", folder.name, __version__)


def draw(html: str, path: Path) -> None:
    """Save what a reader sees first."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = Path(folder) / "report.html"
        file.write_text(html, encoding="utf-8")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": WIDTH}, color_scheme="light")
        shown.goto(file.as_uri())
        table = shown.locator("table[data-name=leaderboard]:visible tbody").first
        box = table.bounding_box()
        assert box is not None
        height = box["y"] + box["height"] + MARGIN
        shown.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        text = PngImagePlugin.PngInfo()
        text.add_itxt(SHOWN, " ".join(table.inner_text().split()))
        browser.close()
    with Image.open(path) as picture:
        picture.load()
        picture.convert("RGB").quantize(128).save(path, pnginfo=text, optimize=True)


if __name__ == "__main__":
    draw(page(Path(sys.argv[1])), Path(sys.argv[2]))

"""The manual as a site: it builds strictly, is complete, and needs nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click
import griffe
import pytest

from harness.cli import main

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


FAULTS = {
    "[dead](nowhere.md)": "target 'nowhere.md' is not found|contains a link 'nowhere.md'",
    "[anchor](other.md#nowhere)": "contains a link 'other.md#nowhere'",
    "[here](#nowhere)": "there is no such anchor on this page",
    "[absolute](/other/)": "contains an absolute link '/other/'",
    "![picture](nowhere.png)": "contains a link 'nowhere.png'",
}


def test_what_is_wrong_with_a_page_ends_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "pages"
    docs.mkdir()
    (docs / "index.md").write_text("# Faults\n\n" + "\n\n".join(FAULTS))
    (docs / "other.md").write_text("# Other\n")
    (docs / "forgotten.md").write_text("# Not in the tree\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: pages\nhooks: []\nplugins: [search]\nextra_css: []\n"
        "nav: [index.md, other.md, missing.md]\n"
    )
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    for fault in (*FAULTS.values(), 'not included in the "nav" configuration:\n  - forgotten.md', "'missing.md' is"):
        assert re.search(fault, done.stderr), f"{fault} is not in {done.stderr}"


class Resources(HTMLParser):
    """What a page loads, and the names that it can be entered by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(given.get("id") or "")
        if tag not in ("a", "form"):
            self.loaded += [given[name] or "" for name in ("src", "href", "data", "poster") if name in given]


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        loaded = Resources(text).loaded
        assert loaded
        assert [name for name in loaded if re.match(r"(\w+:)?//", name)] == [], page
        assert 'class="mermaid"' not in text, f"{page}: the theme loads mermaid from unpkg.com"
        (worker,) = re.findall(r'"search": ?"([^"]+)"', text)
        assert not re.match(r"(\w+:)?//", worker)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def commands(command: click.Command, name: str) -> Iterator[str]:
    yield name
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            yield from commands(one, f"{name}-{below}")


def test_every_command_is_in_the_reference(site: Path) -> None:
    names = Resources((site / "reference" / "cli" / "index.html").read_text()).names
    assert [name for name in commands(main, "lspc-bench") if name not in names] == []


REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
DIRECTIVE = re.compile(r"^::: (?!mkdocs-click)(\S+)$(?:\n    options:\n      members: \[(.*)\]$)?", flags=re.MULTILINE)
"""A module in a page of the reference, and which of its members the page shows, if not all."""


def public(found: griffe.Object | griffe.Alias) -> Iterator[griffe.Object | griffe.Alias]:
    """The names that want a docstring. Fields have theirs in the docstring of their class."""
    for name, member in found.members.items():
        if name.startswith("_") or member.is_alias or (found.is_class and member.is_attribute):
            continue
        yield member
        if member.is_class:
            yield from public(member)


def test_every_public_name_is_explained(site: Path) -> None:
    modules = griffe.GriffeLoader(search_paths=[ROOT])
    for page in REFERENCE:
        names = Resources((site / "reference" / page.stem / "index.html").read_text()).names
        for name, chosen in DIRECTIVE.findall(page.read_text()):
            if name.partition(".")[0] not in modules.modules_collection:
                modules.load(name.partition(".")[0])
            shown = list(public(modules.modules_collection[name]))
            if chosen:
                pattern = re.compile(rf"{re.escape(name)}\.({chosen.replace(', ', '|')})\b")
                shown = [one for one in shown if pattern.match(one.path)]
            assert shown, name
            assert [one.path for one in shown if not one.has_docstring] == []
            assert [one.path for one in shown if one.path not in names] == []


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/run does)")
def test_in_a_browser(site: Path) -> None:
    """Search finds, dark mode follows the system, no page is wider than a phone, and every request is local."""
    from playwright.sync_api import sync_playwright

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
            page.set_default_timeout(120_000)
            asked: list[str] = []
            wrong: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(home)
            page.get_by_placeholder("Search").click()
            page.get_by_placeholder("Search").fill("polyak_update")
            page.locator(".md-search-result__link", has_text="polyak_update").first.wait_for()
            page.keyboard.press("Escape")
            assert page.evaluate("document.body.dataset.mdColorScheme") == "default"
            page.emulate_media(color_scheme="dark")
            page.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
            page.set_viewport_size({"width": 390, "height": 844})
            for name in ("", "results/", "algorithms/lspc/", "reference/cli/", "reference/algorithm/"):
                page.goto(home + name)
                page.locator("h1").first.wait_for()
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            browser.close()
        server.shutdown()
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []
    assert wrong == []

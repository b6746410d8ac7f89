"""What the site has beside docs/*.md: README.md as its first page, CONTRIBUTING.md and CHANGELOG.md; see mkdocs.yml."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Pages of the checkout, and what they are called in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie at the top of the checkout."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_from_docs(text)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Leave the first page's left side empty: it has no others of its kind."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    return markdown


def _from_docs(text: str) -> str:
    """The text with its links as they are from within docs/."""
    for source, target in PAGES.items():
        text = text.replace(f"]({source}", f"]({target}")
    return re.sub(r"\]\(docs/", "](", text)

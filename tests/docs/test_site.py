"""The documentation site: it builds, its links lead somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tools.site import PACKAGES, site_links

ROOT = Path(__file__).parents[2]
# What a browser loads by itself.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """The ids of a page, and the addresses that it links to and that it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in LOADED and LOADED[tag] in found:
            self.loaded.append(found[LOADED[tag]])


def build(site: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """What ``make docs`` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d"]
    return subprocess.run(
        [*command, str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page but that for what is not found, whose links begin at the host's root."""
    paths = (path for path in site.rglob("*.html") if path.name != "404.html")
    return {path: Page(path.read_text()) for path in paths}


def is_foreign(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def test_every_document_and_every_room_has_a_page(pages: dict[Path, Page], site: Path) -> None:
    shown = {str(path.relative_to(site)) for path in pages}
    documents = (path.relative_to(ROOT / "docs") for path in ROOT.glob("docs/**/*.md"))
    assert {str(path.with_suffix(".html")) for path in documents} <= shown
    assert {"index.html", "contributing.html", "changelog.html"} <= shown
    assert {f"api/{package.name}.html" for package in PACKAGES} <= shown
    assert "api/student_trainer.losses.html" in shown


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    assert all(page.loaded for page in pages.values())
    assert {a for page in pages.values() for a in page.loaded if is_foreign(a)} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    """Links within the site, and things loaded, that lead nowhere."""
    for path, page in pages.items():
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].ids if target in pages else {""}
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in known):
                yield f"{path.name}: {address}"


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    assert list(broken(pages)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    here = tmp_path / "here.html"
    here.write_text('<a href="here.html#not"></a><img src="not.png"><a href="#yes" id="yes"></a>')
    assert list(broken({here: Page(here.read_text())})) == [
        "here.html: here.html#not",
        "here.html: not.png",
    ]


CONFIG = """
INHERIT: {root}/mkdocs.yml
docs_dir: pages
nav: [index.md, {{API: []}}]
hooks: []
plugins: []
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](index.md#a-title)", None),
        ("[a](gone.md)", "gone.md"),
        ("[a](index.md#gone)", "#gone"),
        ("[a](/index.md)", "absolute"),
        ("![a](gone.svg)", "gone.svg"),
    ],
)
def test_a_broken_link_fails_the_build(text: str, problem: str | None, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# A title\n\n{text}\n")
    (tmp_path / "mkdocs.yml").write_text(CONFIG.format(root=ROOT))
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert (done.returncode == 0) == (problem is None), done.stderr
    assert problem is None or problem in done.stderr


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("index.md", "docs/data.md", "data.md"),
        ("index.md", "docs/overview.svg", "overview.svg"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("index.md", "examples/plain_loop.py", "examples/plain_loop.md"),
        ("contributing.md", "docs/architecture.md", "architecture.md"),
        ("service.md", "../README.md", "index.md"),
        ("service.md", "vllm.md", "vllm.md"),
        ("reference/teacher-server-metrics.md", "../service.md", "../service.md"),
        ("reference/teacher-server-metrics.md", "../../README.md", "../index.md"),
        ("service.md", "../Makefile", "../Makefile"),
        ("service.md", "https://arxiv.org/abs/2603.25562", "https://arxiv.org/abs/2603.25562"),
    ],
)
def test_links_for_a_forge_become_links_of_the_site(page: str, link: str, shown: str) -> None:
    assert site_links(f"a [b]({link}#c) d", page) == f"a [b]({shown}#c) d"

"""Hook of mkdocs: pages that stand outside docs/, and links between them.

README.md becomes the first page; CONTRIBUTING.md, CHANGELOG.md and the examples get pages
of their own. The API reference is the docstrings of the three packages, one page a room.
A link in any page is written as a forge needs it, relative to the page's own file, and is
turned here into a link between pages of the site.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository and the page of the site that shows each.
TEXTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
EXAMPLES = {
    str(path.relative_to(ROOT)): str(path.relative_to(ROOT).with_suffix(".md"))
    for pattern in ("*.py", "own_loss/*.py", "notebooks/*.ipynb")
    for path in sorted((ROOT / "examples").glob(pattern))
}
PACKAGES = (ROOT / "proto" / "teacher_proto", ROOT / "teacher_server", ROOT / "student_trainer")
LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names the pages of the API reference in the navigation."""
    (section,) = (entry for entry in config.nav or () if "API" in entry)
    section["API"] = [
        {package.name: [{room: api_path(room)} for room in rooms(package)]} for package in PACKAGES
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for source, page in TEXTS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for source, page in EXAMPLES.items():
        files.append(File.generated(config, page, content=example_page(source)))
    for package in PACKAGES:
        for room in rooms(package):
            files.append(File.generated(config, api_path(room), content=api_page(package, room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to the pages that show them."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """``markdown`` with the links of ``page``, a path in the site, as the site needs them."""
    pages = TEXTS | EXAMPLES
    place = next((source for source, shown in pages.items() if shown == page), f"docs/{page}")

    def change(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2]))
        shown = pages.get(target, target.removeprefix("docs/"))
        if not (ROOT / target).exists() or not (target in pages or target.startswith("docs/")):
            return link[0]
        return link[1] + posixpath.relpath(shown, posixpath.dirname(page) or ".")

    return LINK.sub(change, markdown)


def example_page(source: str) -> str:
    """An example as a page: its name and its code; a notebook as its cells."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if not source.endswith(".ipynb"):
        return f"# {source}\n\n````python\n{text}````\n"
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    parts = [code if kind == "markdown" else f"````python\n{code}\n````" for kind, code in cells]
    return "\n\n".join(parts) + "\n"


def rooms(package: Path) -> list[str]:
    """Dotted names of the package and of its folders, generated stubs left out."""
    folders = [package, *(file.parent for file in sorted(package.rglob("*/__init__.py")))]
    names = [".".join(folder.relative_to(package.parent).parts) for folder in folders]
    return [name for name in names if name != "teacher_proto.v1"]


def api_path(room: str) -> str:
    """The page of a room in the site."""
    return f"api/{room}.md"


def api_page(package: Path, room: str) -> str:
    """The reference of a room: what it is for, and each of its modules."""
    folder = package.parent.joinpath(*room.split("."))
    modules = sorted(f"{room}.{file.stem}" for file in folder.glob("[!_]*.py"))
    blocks = [f"::: {room}\n    options:\n      members: false\n      show_root_heading: false"]
    return "\n\n".join([f"# {room}", *blocks, *(f"::: {module}" for module in modules)]) + "\n"

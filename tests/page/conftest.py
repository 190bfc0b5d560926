"""A real headless Chromium, and servers for it to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.access.pki import ALICE, BOB, OLD, write_secret
from tests.clients.packages import node_modules
from tests.server.processes import Program, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "test-output" / "page"
WAIT = 60_000.0  # milliseconds, of whatever a test waits for
REQUEST_BYTES = 1_000_000  # that the guarded server reads at most
RUNS = f"""
[runs.alice]
tokens = [
    {{ token = "{ALICE}" }},
    {{ token = "{OLD}", expires = 2020-01-01T00:00:00Z }},
]
[runs.bob]
teachers = ["default"]
[[runs.bob.tokens]]
token = "{BOB}"
"""


@dataclass
class Looking:
    """A page of the browser; what it reports as an error fails the test.

    Attributes:
        expected: parts of messages that a test means to cause.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def select(self, label: str) -> Locator:
        """The choice of this label, whose own text holds the options too."""
        return self.page.locator("label.choice").filter(has_text=label).locator("select")

    def shot(self, name: str) -> None:
        """Keeps a picture of the whole page as output of the tests."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def check(self) -> None:
        unexpected = [e for e in self.errors if not any(part in e for part in self.expected)]
        assert unexpected == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; skips the test where it or playwright is missing.

    It ends with its module: while it lives an event loop runs in this thread, beside which
    no asynchronous test of another module could run.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed")
    api.expect.set_options(timeout=WAIT)
    with api.sync_playwright() as playwright:
        # No sandbox: tests run as root in containers, and it shows the tests' own pages alone.
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Looking]]:
    """Opens an address in a context of its own; at the end no page may have failed."""
    opened: list[Looking] = []

    def open_page(address: str, **context: Any) -> Looking:
        own = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
        own.set_default_timeout(WAIT)
        found = Looking(own.new_page())
        opened.append(found)
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on(
            "console", lambda m: found.errors.append(m.text) if m.type == "error" else None
        )
        found.page.goto(address)
        return found

    yield open_page
    for one in opened:
        one.page.context.close()
    for one in opened:
        one.check()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once and kept by its content; never in the wheel."""
    return (node_modules(Path(__file__).parent / "axe") / "axe-core" / "axe.min.js").read_text()


def problems(look: Looking, axe: str) -> list[str]:
    """What axe-core finds wrong with the page as it is shown."""
    look.page.evaluate(axe)
    found = look.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}: {node['failureSummary'][:200]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.fixture(scope="session")
def program(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """Two teachers of different tokenizers, without credentials."""
    folder = tmp_path_factory.mktemp("open")
    teachers = (f"default={tiny_model_dir}", f"other={other_tokenizer_model_dir}")
    arguments = [part for one in teachers for part in ("--teacher", one)]
    with serving(folder, *arguments, "--dtype", "float32") as found:
        yield found


@pytest.fixture(scope="session")
def guarded(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One teacher that asks for tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    file = write_secret(folder / "runs.toml", RUNS)
    model = ("--model", str(tiny_model_dir), "--dtype", "float32")
    limit = ("--set", f"limits.max_request_bytes={REQUEST_BYTES}")
    with serving(folder, *model, *limit, "--credentials-file", str(file)) as found:
        yield found


def address(program: Program) -> str:
    return f"http://{program.facts['http_address']}"

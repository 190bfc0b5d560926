"""What the page takes in a real browser, with a sequence of 4,096 tokens.

Debian's Chromium, headless. The file is what `teacher-server inspect --out` writes; the server
is a process on loopback.

Figures:
    details_ms      median, from a key that chooses a token to the frame with its details
    details_p99_ms  the 99th percentile of the same
    colours_ms      median, from another choice of colour to the frame that shows it
    first_paint_ms  median of the first contentful paint of the server's page, nothing cached
    file_paint_ms   median of the first contentful paint of the file
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from teacher_proto.page import make_document, render_offline

from benchmarks.harness import write_result
from benchmarks.load_fleet import server

TOKENS, K = 4096, 20
# Until the frame after the work has been drawn.
TIMED = """async ([selector, event]) => {
  const element = document.querySelector(selector);
  const begin = performance.now();
  if (event === "change") {
    element.selectedIndex = (element.selectedIndex + 1) % element.options.length;
    element.dispatchEvent(new Event("change"));
  } else {
    element.dispatchEvent(new KeyboardEvent("keydown", { key: event, bubbles: true }));
  }
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  return performance.now() - begin;
}"""
PAINT = """() => new Promise((done) => {
  const found = () => performance.getEntriesByName("first-contentful-paint")[0];
  if (found()) done(found().startTime);
  new PerformanceObserver(() => { if (found()) done(found().startTime); })
    .observe({ type: "paint", buffered: true });
})"""


def timed(page: Any, selector: str, events: list[str]) -> list[float]:
    return [page.evaluate(TIMED, [selector, event]) for event in events]


def paint(browser: Any, address: str) -> float:
    """Milliseconds of the first paint, in a context that has nothing of the page."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    found: float = page.evaluate(PAINT)
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_page", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from tests.page.documents import sequence
    from tests.support.models import make_tiny_model

    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("chromium is not installed")
    repeat = range(arguments.repetitions)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "rows.html")
        file.write_text(render_offline(make_document([sequence("rollout", TOKENS, k=K)])))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(file.as_uri())
        keys = ["ArrowRight", "End", "PageUp", "ArrowLeft", "Home", "PageDown"] * len(repeat)
        details = timed(page, ".strip", keys)
        colours = timed(page, "select", ["change"] * len(repeat))
        of_file = [paint(browser, file.as_uri()) for _ in repeat]
        with server(make_tiny_model(Path(folder, "tiny"))) as teacher:
            of_server = [paint(browser, f"http://{teacher.http_address}/") for _ in repeat]
        version = browser.version
        browser.close()
        size = file.stat().st_size
    write_result(
        "page",
        {
            "details_ms": statistics.median(details),
            "details_p99_ms": statistics.quantiles(details, n=100, method="inclusive")[98],
            "colours_ms": statistics.median(colours),
            "first_paint_ms": statistics.median(of_server),
            "file_paint_ms": statistics.median(of_file),
        },
        {
            "chromium": version,
            "tokens": TOKENS,
            "top_k": K,
            "file_bytes": size,
            "repetitions": arguments.repetitions,
            "largest_ms": {
                "details": max(details),
                "colours": max(colours),
                "first_paint": max(of_server),
                "file_paint": max(of_file),
            },
        },
    )


if __name__ == "__main__":
    main()

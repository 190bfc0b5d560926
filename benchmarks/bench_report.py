"""What a report of 400 steps takes in a real browser, and whether its findings are right.

Debian's Chromium, headless. The run is made up: every metric that a run across tokenizers has,
nine evaluations of 60 prompts, and eight kept responses of 256 tokens.

Figures:
    open_ms         median, from the navigation to the end of the load event
    paint_ms        median of the first contentful paint
    make_seconds    median, from the run's files to report.html
    report_bytes    its size
    findings_right  made-up runs with one planted problem where it is found and nothing else
    findings_runs   how many such runs there are, the healthy one among them
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import write_result
from student_trainer.evaluation.course.points import file_of
from student_trainer.evaluation.files import save_evaluation
from student_trainer.report import write_report
from student_trainer.report.findings import find
from student_trainer.watch import files as kept_files

STEPS, EVERY, PROMPTS, TOKENS, KEPT = 400, 50, 60, 256, 8
OPENED = """() => new Promise((done) => {
  const told = () => {
    const [load] = performance.getEntriesByType("navigation");
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    if (load.loadEventEnd && paint) done([load.loadEventEnd, paint.startTime]);
    else setTimeout(told, 5);
  };
  told();
})"""


def write_run(folder: Path) -> None:
    """A run of ``STEPS`` steps as a trainer leaves it."""
    from tests.report import conftest as made
    from tests.report.test_findings import healthy, point
    from tools.reference.trainer_metrics import METRICS

    made.write_run(folder)
    random.seed(7)
    numbers = [
        key.name
        for key in METRICS
        if key.unit not in ("date, UTC", "digest") and "list" not in key.unit
    ]
    lines = []
    for step in range(1, STEPS + 1):
        noise = {name: 0.5 + random.random() / 4 for name in numbers}
        line = {**noise, **made.step(step), **healthy(step), "loss_by_position": [0.5] * 9}
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    for step in range(EVERY, STEPS + 1, EVERY):
        kls = [1 / step + random.random() for _ in range(PROMPTS)]
        frozen = point(step, *kls).evaluation.frozen
        found = replace(made.evaluation(1.0, "fine", 30.0), frozen=frozen)
        save_evaluation(found, file_of(folder / "evaluation", step))
    record = made.RECORD
    longer = {
        name: [value[n % 2] for n in range(TOKENS)]
        if isinstance(value, list) and len(value) == 2
        else value
        for name, value in record.items()
    }
    records = [{**longer, "place": place} for place in range(KEPT)]
    kept_files.save(kept_files.file_of(folder / "rollouts", STEPS), records)


def findings() -> tuple[int, int]:
    """How many of the made-up runs have the findings that they should, and how many there are."""
    from tests.report.test_findings import BETTER, PLANTED, course

    right = sum(
        [(one.level, one.metric, one.setting) for one in find(course(planted, BETTER))]
        == [(level, metric, setting)]
        for planted, level, metric, setting in PLANTED
    )
    return right + (find(course(points=BETTER)) == []), len(PLANTED) + 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_report", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("chromium is not installed")
    opened: list[list[float]] = []
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = Path(folder, "run")
        write_run(run)
        for _ in range(arguments.repetitions):
            began = time.perf_counter()
            report = write_report(run)
            seconds.append(time.perf_counter() - began)
        size = report.stat().st_size
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        version = browser.version
        for _ in range(arguments.repetitions):
            page: Any = browser.new_context().new_page()
            page.goto(report.as_uri())
            opened.append(page.evaluate(OPENED))
            page.context.close()
        browser.close()
    right, runs = findings()
    loads, paints = zip(*opened, strict=True)
    write_result(
        "report",
        {
            "open_ms": statistics.median(loads),
            "paint_ms": statistics.median(paints),
            "make_seconds": statistics.median(seconds),
            "report_bytes": size,
            "findings_right": right,
            "findings_runs": runs,
        },
        {
            "chromium": version,
            "steps": STEPS,
            "repetitions": arguments.repetitions,
            "largest_ms": {"open": max(loads), "paint": max(paints)},
        },
    )


if __name__ == "__main__":
    main()

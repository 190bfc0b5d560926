"""Writes the generated pages of the reference.

python -m tools.reference           writes docs/reference
python -m tools.reference --check   ends with 1 and the diff when a page has drifted
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from student_trainer.settings import resolve as trainer
from student_trainer.settings.train import TrainConfig
from teacher_server import cli as server
from teacher_server.config import ServeConfig
from tools.reference import server_metrics, settings, trainer_metrics
from tools.reference.markdown import page

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
LINK = re.compile(r"\(docs/([a-z]+)\.md\)")


def pages() -> dict[str, str]:
    """Every page by its file name."""
    found = {
        "teacher-server-settings.md": page(
            "Settings of teacher-server",
            "Keys of a TOML file for `teacher-server serve` and `doctor`. Each key can also be "
            f"set as `--set key=value`, as an environment variable (`{server.ENV_PREFIX}LIMITS__"
            "MAX_QUEUE_TOKENS`), and some by a flag of their own "
            "(docs/service.md). NAME stands for a name of your choice.",
            *settings.render(settings.sections(ServeConfig), server_flags()),
        ),
        "student-trainer-settings.md": page(
            "Settings of student-trainer",
            "Keys of a TOML file for `student-trainer train` and `doctor`. Each key can also be "
            f"set as `--set key=value` or as an environment variable (`{trainer.ENV_PREFIX}__"
            "ROLLOUT__TOP_P`) (docs/training.md).",
            *settings.render(settings.sections(TrainConfig), {}),
        ),
        "teacher-server-metrics.md": page(
            "Metrics of teacher-server",
            "What `GET /metrics` shows, in Prometheus' text format (docs/observability.md).",
            *server_metrics.sections(),
        ),
        "student-trainer-metrics.md": page(
            "Metrics of student-trainer",
            "What a run writes about itself (docs/training.md).",
            *trainer_metrics.sections(),
        ),
    }
    return {name: LINK.sub(r"([\1](../\1.md))", text) for name, text in found.items()}


def server_flags() -> Mapping[str, str]:
    """The flag of each key of ``serve`` that has one of its own."""
    keys = list(server.flags(server.parser().parse_args(["serve"])))
    named = {key: "--" + key.replace("_", "-").replace(".", "-") for key in keys}
    return named | server.flag_names(keys) | {"teachers.NAME.model": "--teacher NAME=PATH"}


def drift(folder: Path) -> list[str]:
    """Unified diff from the pages in ``folder`` to fresh ones; empty when equal."""
    fresh = pages()
    lines: list[str] = []
    for name in sorted({*fresh, *(path.name for path in folder.glob("*.md"))}):
        path = folder / name
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        new = fresh.get(name, "").splitlines(keepends=True)
        lines += difflib.unified_diff(old, new, f"committed/{name}", f"generated/{name}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    if parser.parse_args().check:
        lines = drift(FOLDER)
        sys.stdout.writelines(lines)
        if lines:
            sys.stderr.write("error: docs/reference drifted. Fix: make reference\n")
        return 1 if lines else 0
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.md"):
        stale.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``teacher-server serve`` with its scheduling timed, and, with a rate, on a timed engine.

    python -m benchmarks.load_server REPORT.json RATE SERVE-ARGUMENTS...

RATE is tokens per second of a ``TimedEngine``, 0 for the configured engine. When
the server ends, REPORT.json holds {"scheduling_seconds", "requests"}: the time
inside the admission queue, and how many requests were offered to it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timed_engine import TimedEngine
from teacher_server import cli
from teacher_server.engines.base import Engine
from teacher_server.queue.admission import AdmissionQueue
from teacher_server.settings.teachers import EngineSettings
from teacher_server.teachers import load

VOCABULARY = 320
MAX_LENGTH = 8192
# Of the largest job that the benchmark sends to a timed engine.
PASS_TOKENS = 1024


class Stopwatch:
    """Seconds inside the methods it wraps; calls of one inside another count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.requests = 0
        self._depth = 0

    def wrap(self, method: Callable[..., Any], *, counts: bool = False) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self.requests += counts
            self._depth += 1
            begin = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - begin

        return timed


def main() -> int:
    report, rate, *arguments = sys.argv[1:]
    watch = Stopwatch()
    for name in ("check", "leave", "advance"):
        setattr(AdmissionQueue, name, watch.wrap(getattr(AdmissionQueue, name)))
    AdmissionQueue.offer = watch.wrap(AdmissionQueue.offer, counts=True)  # type: ignore[method-assign]

    if float(rate):

        def make(model: str, settings: EngineSettings) -> Engine:
            return TimedEngine(
                rate=float(rate),
                pass_tokens=PASS_TOKENS,
                vocabulary_size=VOCABULARY,
                max_length=MAX_LENGTH,
            )

        load.ENGINES["transformers"] = make
    try:
        return cli.main(["serve", *arguments])
    finally:
        found = {"scheduling_seconds": watch.seconds, "requests": watch.requests}
        Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())

"""What native code writes to stderr, as JSON: a program of its own, which needs no package.

It reads lines from its standard input until every writer is gone, the server too, and
writes one JSON object for each to its standard output. A line is cut at MAX_LINE bytes.
Lines beyond BURST and PER_SECOND are counted and left out, but not the last ones of all,
which say why the server crashed. Of a Rust panic only the
place is told: its message may quote what a caller sent.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone

MAX_LINE = 1000  # bytes; a JSON object of it is written in one piece to a pipe
BURST = 500
PER_SECOND = 20.0
PANIC = re.compile(r"thread '[^']*'(?: \(\d+\))? panicked at (?P<place>[^'\"]*):$")
# Whatever follows a panic is its message, until a line of a known form: the note that ends
# it, a line of absl (gRPC) or of Python's last words; or until the lines pause.
KNOWN = re.compile(
    r"note: run with `RUST_BACKTRACE"
    r"|[IWEF]\d{4} [\d:]+\.\d+ +\d+ \S+:\d+\] |WARNING: All log messages before absl"
    r"|Fatal Python error: |Current thread 0x|Thread 0x"
)
PAUSE = 0.5  # seconds
LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}


class NativeLines:
    """Raw bytes in, records out.

    Args:
        write: gets each record.
        clock: seconds, monotonic.
    """

    def __init__(self, write: Callable[[dict[str, object]], None], clock: Callable[[], float]):
        self._write = write
        self._clock = clock
        self._line = bytearray()
        self._cut = 0
        self._allowed, self._since = float(BURST), clock()
        self._left_out: deque[dict[str, object]] = deque(maxlen=BURST)
        self._left_out_lines = 0
        self._panicked: float | None = None

    def feed(self, data: bytes) -> None:
        parts = data.replace(b"\r", b"\n").split(b"\n")
        for part in parts[:-1]:
            self._add(part)
            self._end_line()
        self._add(parts[-1])

    def close(self) -> None:
        """The last words, which may have no end."""
        self._end_line()
        last = list(self._left_out)
        self._left_out_lines -= len(last)
        self._tell_left_out()
        for one in last:
            self._write(one)

    def _add(self, part: bytes) -> None:
        room = MAX_LINE - len(self._line)
        self._line += part[:room]
        self._cut += max(0, len(part) - room)

    def _end_line(self) -> None:
        text = self._line.decode("utf-8", "replace").rstrip()
        cut, self._cut = self._cut, 0
        self._line.clear()
        if text:
            self._take(text, cut)

    def _take(self, text: str, cut: int) -> None:
        now = self._clock()
        if (panic := PANIC.search(text)) is not None:
            self._panicked = now
            self._emit(now, "error", {"event": "a thread panicked", "place": panic["place"]})
            return
        if self._panicked is not None:
            if now - self._panicked <= PAUSE and not KNOWN.match(text):
                self._panicked = now
                return
            self._panicked = None
        level = LEVELS[text[0]] if KNOWN.match(text) and text[1:5].isdigit() else "warning"
        self._emit(now, level, {"event": text} | ({"cut_bytes": cut} if cut else {}))

    def _emit(self, now: float, level: str, fields: dict[str, object]) -> None:
        self._allowed = min(float(BURST), self._allowed + (now - self._since) * PER_SECOND)
        self._since = now
        if self._allowed < 1:
            self._left_out.append(record(level, fields))
            self._left_out_lines += 1
            return
        self._allowed -= 1
        self._tell_left_out()
        self._write(record(level, fields))

    def _tell_left_out(self) -> None:
        lines, self._left_out_lines = self._left_out_lines, 0
        self._left_out.clear()
        if lines:
            self._write(record("warning", {"event": "lines were left out", "lines": lines}))


def record(level: str, fields: dict[str, object]) -> dict[str, object]:
    # Not datetime.UTC: whichever Python runs this file.
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017
    return {"time": now, "level": level, "logger": "native", **fields}


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the writers have ended

    def write(one: dict[str, object]) -> None:
        os.write(1, json.dumps(one, ensure_ascii=False).encode() + b"\n")

    lines = NativeLines(write, time.monotonic)
    while data := os.read(0, 65536):
        lines.feed(data)
    lines.close()


if __name__ == "__main__":
    main()

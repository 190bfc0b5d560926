"""Whoever writes to the server's stderr: every line is one JSON object, and none is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from teacher_proto.errors import EXIT_CONFIGURATION

from teacher_server.telemetry.native_lines import BURST, MAX_LINE, PAUSE, NativeLines
from tests.server.chatty_server import ABSL, PANIC, SECRET
from tests.server.processes import LONG, ROOT, serving


def lines_of(ending: str, model: Path, code: int) -> list[dict[str, Any]]:
    """What a server wrote to stderr; read to the end, which is that of every writer."""
    start = [sys.executable, "-m", "tests.server.chatty_server", ending]
    ports = ["--grpc-port", "0", "--http-port", "0", "--device", "cpu"]
    ended = subprocess.run(
        [*start, "--model", str(model), *ports], stderr=subprocess.PIPE, timeout=LONG, cwd=ROOT
    )
    assert ended.returncode == code, ended.stderr
    assert SECRET.encode() not in ended.stderr
    found = [json.loads(line) for line in ended.stderr.splitlines()]
    for line in found:
        assert {"time", "level", "logger", "event"} <= set(line)
    return found


@pytest.mark.parametrize(("ending", "code"), [("stop", 0), ("crash", -signal.SIGSEGV)])
def test_every_line_is_a_json_object(ending: str, code: int, tiny_model_dir: Path) -> None:
    lines = lines_of(ending, tiny_model_dir, code)
    native = [line for line in lines if line["logger"] == "native"]
    panics = [line for line in native if line["event"] == "a thread panicked"]
    assert [line["place"] for line in panics] == ["src/models/bpe.rs:12:5"] * 2
    events = [str(line["event"]) for line in lines]
    assert ABSL.strip() in events
    assert f"{'x' * MAX_LINE}" in events
    left_out = [line["lines"] for line in native if line["event"] == "lines were left out"]
    assert sum(left_out) > 3000 - 3 * BURST
    assert len(native) < 3 * BURST
    logged = [line for line in lines if line["logger"] != "native"]
    assert any("a library's warning" in str(line["event"]) for line in logged)
    told = {str(line["event"]).split(":")[0]: line.get("traceback", "") for line in logged}
    assert "KeyError: 'missing'" in told["the thread helper failed"]
    assert "in a destructor" in told["a failure that could not be raised"]
    assert "KeyError: 'callback'" in told["the event loop"]
    if ending == "crash":
        assert any("last words without an endFatal Python error" in event for event in events)
        assert any("in chatty" in event for event in events), "no stack of the crash"


def test_a_failure_of_the_program_itself_is_a_line_too(tmp_path: Path) -> None:
    (line,) = lines_of("fail", tmp_path, 1)
    assert line["event"] == "the server failed"
    assert "an unexpected failure" in line["traceback"]


def test_a_reason_not_to_start_is_one_plain_line(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "teacher_server", "serve", "--grpc-port", "0"]
    ended = subprocess.run(
        [*start, "--http-port", "0", "--model", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=ROOT,
    )
    *logged, last = ended.stderr.splitlines()
    assert last.startswith("error: ")
    assert all(json.loads(line) for line in logged)


def test_a_closed_stderr_is_no_reason_to_fail(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "teacher_server", "serve", "--grpc-port", "0"]
    closed = ["bash", "-c", 'exec "$0" "$@" 2>&-', *start]
    arguments = ["--http-port", "0", "--model", str(tmp_path / "none")]
    audit = tmp_path / "audit.jsonl"
    ended = subprocess.run(
        [*closed, *arguments, "--audit-file", str(audit)], timeout=LONG, cwd=ROOT
    )
    assert ended.returncode == EXIT_CONFIGURATION
    (line,) = audit.read_text().splitlines()
    assert json.loads(line)["event"] == "start", "the audit file took the place of stderr"


def test_stderr_is_read_on_and_the_audit_log_stays_there(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    arguments = ("--model", str(tiny_model_dir), "--audit-file", "/dev/stderr")
    with serving(tmp_path, *arguments) as program:
        server = psutil.Process(program.process.pid)
        (reader,) = (one for one in server.children() if "native_lines" in " ".join(one.cmdline()))
        reader.kill()
        end = time.monotonic() + LONG
        while "it is started again" not in program.log.read_text():
            assert time.monotonic() < end
        program.process.send_signal(signal.SIGHUP)
        for _ in range(50):
            httpx.get(f"http://{program.facts['http_address']}/v1/teacher").raise_for_status()
        assert program.end() == 0
        lines = [json.loads(line) for line in program.log.read_text().splitlines()]
    assert sum(line.get("method") == "GET /v1/teacher" for line in lines) == 50
    assert reader.pid not in {one.pid for one in psutil.process_iter()}, "nobody waited for it"


class Read:
    """What ``NativeLines`` makes of bytes, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.records: list[dict[str, object]] = []
        self.lines = NativeLines(self.records.append, lambda: self.now)

    @property
    def events(self) -> list[object]:
        return [one["event"] for one in self.records]


def test_lines_are_put_together_from_whatever_arrives() -> None:
    read = Read()
    for byte in "one\ntwo é\r\n\nthree".encode():
        read.lines.feed(bytes([byte]))
    assert read.events == ["one", "two é"]
    read.lines.close()
    assert read.events == ["one", "two é", "three"]


def test_what_follows_a_panic_is_withheld_until_the_lines_pause_or_have_a_known_form() -> None:
    read = Read()
    read.lines.feed(PANIC.encode() + b"still the message\n" + ABSL.encode() + b"after\n")
    assert read.events == ["a thread panicked", ABSL.strip(), "after"]
    read.lines.feed(PANIC.encode())
    read.now += 2 * PAUSE
    read.lines.feed(b"something else\n")
    assert read.events[3:] == ["a thread panicked", "something else"]
    assert read.records[1]["level"] == "error"


def test_a_long_line_is_cut_and_says_so() -> None:
    read = Read()
    read.lines.feed(b"a" * 10 * MAX_LINE + b"\nb\n")
    assert read.records[0]["cut_bytes"] == 9 * MAX_LINE
    assert read.events == ["a" * MAX_LINE, "b"]


def test_lines_beyond_the_rate_are_counted() -> None:
    read = Read()
    read.lines.feed(b"spin\n" * (BURST + 40))
    assert len(read.records) == BURST
    read.now += 1.0
    read.lines.feed(b"later\n")
    assert read.events[BURST:] == ["lines were left out", "later"]
    assert read.records[BURST]["lines"] == 40


def test_the_last_lines_of_all_are_kept() -> None:
    read = Read()
    read.lines.feed(b"spin\n" * (3 * BURST) + b"last words")
    read.lines.close()
    assert read.events[BURST] == "lines were left out"
    assert read.records[BURST]["lines"] == BURST + 1
    assert read.events[BURST + 1 :] == ["spin"] * (BURST - 1) + ["last words"]

"""One real server process and many client processes, started and read."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load_client import Answer, Load

CLIENT = [sys.executable, "-m", "benchmarks.load_client"]
# After the last client is ready, seconds until all begin.
HEAD_START = 0.5
SAMPLE_SECONDS = 0.1


@dataclass
class Server:
    """A running server; ``report`` is filled when it has ended (``load_server``)."""

    address: str
    http_address: str
    process: subprocess.Popen[bytes]
    report: dict[str, float] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has ended")


@contextmanager
def server(
    model: Path, *settings: str, rate: float = 0.0, descriptors: int = 0
) -> Iterator[Server]:
    """A ready server on free ports.

    Args:
        rate: tokens/s of a timed engine, 0 for a real one.
        descriptors: that the process may have open; 0 for what this one may.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready, log, report = (Path(folder, name) for name in ("ready.json", "log", "report.json"))
        arguments = ["--model", str(model), "--dtype", "float32", "--device", "cpu"]
        arguments += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
        arguments += [part for setting in settings for part in ("--set", setting)]
        start = [sys.executable, "-m", "benchmarks.load_server", str(report), str(rate)]
        if descriptors:
            start = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *start]
        with log.open("w") as sink:
            process = subprocess.Popen(start + arguments, stderr=sink)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(f"the server ended:\n{log.read_text()}")
                time.sleep(0.1)
            facts = json.loads(ready.read_text())
            found = Server(facts["grpc_address"], facts["http_address"], process)
            yield found
        finally:
            process.terminate()
            process.wait()
        found.report.update(json.loads(report.read_text()))


@dataclass(frozen=True)
class Measured:
    """What came back between ``begin`` and ``end``, seconds of the monotonic clock."""

    begin: float
    end: float
    answers: tuple[Answer, ...]
    memory_before: int
    memory_peak: int

    def of(self, run: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.run == run]

    def tokens_per_second(self, run: str = "") -> float:
        """Tokens answered, of one run or of all, between two completions near the edges."""
        ends = [a.end for a in self.answers if a.outcome == "ok"]
        first = max((end for end in ends if end <= self.begin), default=self.begin)
        last = max((end for end in ends if end <= self.end), default=self.end)
        done = [
            a.tokens
            for a in self.answers
            if a.outcome == "ok" and first < a.end <= last and run in ("", a.run)
        ]
        return sum(done) / (last - first)

    def seconds(self, outcome: str, run: str = "") -> list[float]:
        """How long each answer of this outcome took, of those that came inside."""
        return [
            a.end - a.begin
            for a in self.answers
            if a.outcome == outcome and self.begin < a.end <= self.end and run in ("", a.run)
        ]


def measure(of: Server, loads: Sequence[Load], *, warm_up: float, seconds: float) -> Measured:
    """Runs every load in a process of its own; what comes back during ``warm_up`` is kept
    among the answers and not measured."""
    clients: list[subprocess.Popen[str]] = []
    try:
        for load in loads:
            spec = json.dumps(asdict(load))
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            clients.append(subprocess.Popen([*CLIENT, spec], text=True, **pipes))
        for client in clients:
            assert client.stdin is not None
            assert client.stdout is not None
            if client.stdout.readline() != "ready\n":
                raise SystemExit("a client did not start")
        start = time.monotonic() + HEAD_START
        begin, end = start + warm_up, start + warm_up + seconds
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(f"{start} {end}\n")
            client.stdin.flush()
        before, peak = _watch_memory(of, begin, end)
        answers: list[Answer] = []
        for client in clients:
            answers += [Answer(**one) for one in json.loads(client.communicate(timeout=60)[0])]
        return Measured(begin, end, tuple(answers), before, peak)
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
            client.wait()


def _watch_memory(of: Server, begin: float, end: float) -> tuple[int, int]:
    """(at ``begin``, highest until ``end``), bytes."""
    time.sleep(max(0.0, begin - time.monotonic()))
    before = peak = of.memory
    while time.monotonic() < end:
        time.sleep(SAMPLE_SECONDS)
        peak = max(peak, of.memory)
    return before, peak


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 for equal shares, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def percentile(values: Sequence[float], percent: int) -> float:
    """Of at least two values; the largest is the 100th."""
    ordered = statistics.quantiles(values, n=100, method="inclusive")
    return ordered[percent - 1]

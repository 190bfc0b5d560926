"""``teacher-server top``: runs, queue and tokens/s of a running server, read from /metrics."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from teacher_proto.errors import ConfigurationError, TeacherUnavailableError, UnauthenticatedError

from teacher_server.commands.client_arguments import add_tls_arguments, add_token_arguments
from teacher_server.commands.over_http import ask, place_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from teacher_proto.client.credentials import Identification

# Sample name and labels -> value, as /metrics gives them.
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class RunView:
    """One run: tokens scored per second between two polls, what waits and since when."""

    run: str
    tokens_per_second: float
    tokens: float
    queue_tokens: float
    queue_age_seconds: float
    rejections_per_second: float


@dataclass(frozen=True)
class TeacherView:
    """One teacher; rates are per second between two polls. ``engine_share`` is engine
    time per wall time, ``batch_fill`` of 1 a full batch, None where nothing ran."""

    teacher: str
    tokens_per_second: float
    engine_share: float
    batch_fill: float | None
    queue_tokens: float
    queue_age_seconds: float
    inflight_tokens: float


@dataclass(frozen=True)
class View:
    """A server between two polls ``seconds`` apart."""

    ready: bool
    seconds: float
    requests_per_second: float
    rejections_per_second: float
    teachers: tuple[TeacherView, ...]
    runs: tuple[RunView, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:8080",
        help="the server's HTTP address (http://127.0.0.1:8080)",
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between polls (2)"
    )
    parser.add_argument("--once", action="store_true", help="print one interval and stop")
    parser.add_argument("--json", action="store_true", help="one JSON line an interval")
    add_token_arguments(parser)
    add_tls_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Shows intervals until interrupted, or one of them.

    Raises:
        ConfigurationError: the URL and the credentials do not go together.
        TeacherUnavailableError: nothing answers at the address.
    """
    if arguments.interval <= 0:
        raise ConfigurationError(f"is {arguments.interval}, must be > 0", where="--interval")
    place = place_of(arguments.url, arguments, "--url")
    views = watch(f"{place.base}/metrics", place.own, arguments.interval)
    if arguments.json:
        for view in views:
            sys.stdout.write(json.dumps(asdict(view)) + "\n")
            sys.stdout.flush()
            if arguments.once:
                break
        return 0
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if arguments.once:
        console.print(tables(next(views)))
        return 0
    with Live(console=console, auto_refresh=False) as live:
        for view in views:
            live.update(tables(view), refresh=True)
    return 0


def watch(url: str, own: Identification, interval: float) -> Iterator[View]:
    """A view of every ``interval`` seconds."""
    before, then = fetch(url, own), time.monotonic()
    while True:
        time.sleep(interval)
        after, now = fetch(url, own), time.monotonic()
        yield view_between(before, after, now - then)
        before, then = after, now


def fetch(url: str, own: Identification) -> Samples:
    """The samples of a /metrics page.

    Raises:
        TeacherUnavailableError: nothing answers there, or not with metrics.
        UnauthenticatedError: the server wants credentials.
    """
    import urllib.error

    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = ask(url, own, TIMEOUT_SECONDS, failed=partial(_not_there, url)).decode()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UnauthenticatedError(
                f"the server refuses to show its metrics ({error.code})",
                where=url,
                fix="give --token-file with a token of one of its runs",
            ) from error
        raise _not_there(url, f"HTTP {error.code}") from error
    except UnicodeDecodeError as error:
        raise _not_there(url, "the page is no text") from error
    try:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except ValueError as error:
        raise _not_there(url, "the page is not in Prometheus' format") from error


def _not_there(url: str, why: str) -> TeacherUnavailableError:
    return TeacherUnavailableError(
        f"no metrics ({why})", where=url, fix="give --url with the HTTP port of a teacher-server"
    )


def view_between(before: Samples, after: Samples, seconds: float) -> View:
    """The view of the time between two polls."""

    def rate(name: str, **labels: str) -> float:
        """Growth per second, summed over the labels left open."""
        wanted = labels.items()
        grown = sum(
            value - before.get(key, 0.0)
            for key, value in after.items()
            if key[0] == name and wanted <= dict(key[1]).items()
        )
        return grown / seconds

    def now(name: str, **labels: str) -> float:
        return after.get((name, frozenset(labels.items())), 0.0)

    def labels_of(label: str, *names: str) -> list[str]:
        return sorted({dict(key[1])[label] for key in after if key[0] in names})

    def teacher(name: str) -> TeacherView:
        batches = rate("lsm_teacher_passes_total", teacher=name)
        room = batches * now("lsm_teacher_pass_capacity_tokens", teacher=name)
        filled = rate("lsm_teacher_pass_tokens_total", teacher=name)
        return TeacherView(
            name,
            rate("lsm_teacher_computed_tokens_total", teacher=name),
            rate("lsm_teacher_engine_seconds_total", teacher=name),
            filled / room if room else None,
            now("lsm_teacher_queue_tokens", teacher=name),
            now("lsm_teacher_queue_age_seconds", teacher=name),
            now("lsm_teacher_inflight_tokens", teacher=name),
        )

    def run_view(name: str) -> RunView:
        return RunView(
            name,
            rate("lsm_teacher_run_tokens_total", run=name),
            now("lsm_teacher_run_tokens_total", run=name),
            now("lsm_teacher_run_queue_tokens", run=name),
            now("lsm_teacher_run_queue_age_seconds", run=name),
            rate("lsm_teacher_rejections_total", run=name),
        )

    runs = labels_of(
        "run",
        "lsm_teacher_run_tokens_total",
        "lsm_teacher_run_queue_tokens",
        "lsm_teacher_rejections_total",
    )
    return View(
        ready=now("lsm_teacher_ready") == 1.0,
        seconds=round(seconds, 3),
        requests_per_second=rate("lsm_teacher_requests_total", method="Score"),
        rejections_per_second=rate("lsm_teacher_rejections_total"),
        teachers=tuple(teacher(t) for t in labels_of("teacher", "lsm_teacher_queue_tokens")),
        runs=tuple(run_view(r) for r in runs),
    )


def tables(view: View) -> Group:
    """The view for a terminal."""
    from rich.console import Group
    from rich.text import Text

    head = Text(
        f"{'ready' if view.ready else 'NOT READY'}   "
        f"{view.requests_per_second:.1f} requests/s   "
        f"{view.rejections_per_second:.1f} rejections/s   over {view.seconds:.1f} s"
    )
    teachers = _table(
        "teacher", "tokens/s", "engine", "batch fill", "queued", "oldest s", "in flight"
    )
    for t in view.teachers:
        fill = "-" if t.batch_fill is None else f"{t.batch_fill:.0%}"
        queue = (
            f"{t.queue_tokens:.0f}",
            f"{t.queue_age_seconds:.1f}",
            f"{t.inflight_tokens:.0f}",
        )
        teachers.add_row(
            Text(t.teacher), f"{t.tokens_per_second:.0f}", f"{t.engine_share:.0%}", fill, *queue
        )
    runs = _table("run", "tokens/s", "tokens", "queued", "oldest s", "rejections/s")
    for r in sorted(view.runs, key=lambda r: -r.tokens_per_second):
        runs.add_row(
            Text(r.run),
            f"{r.tokens_per_second:.0f}",
            f"{r.tokens:.0f}",
            f"{r.queue_tokens:.0f}",
            f"{r.queue_age_seconds:.1f}",
            f"{r.rejections_per_second:.1f}",
        )
    return Group(head, teachers, runs)


def _table(first: str, *rest: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in rest:
        table.add_column(name, justify="right")
    return table

"""What a run shows while it works: a bar on a terminal, otherwise a short line per step."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from student_trainer.diagnostics.bins import numbers_of_lists
from student_trainer.settings.run import HELD_OUT
from student_trainer.trackers import Trackers

log = logging.getLogger(__name__)


class Progress:
    """Context manager. Call ``step`` after every step, ``evaluated`` after an evaluation, and
    ``phase`` when another part of the run begins. Trackers receive what they are given too.

    The bar needs a terminal and ``TQDM_DISABLE`` unset; ``NO_COLOR`` is respected. Without
    a bar, ``step`` writes a short line, unless it is ``quiet``; metrics.jsonl has all of it.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        stream: TextIO | None = None,
        trackers: Trackers | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self._trackers = trackers
        self._quiet = quiet
        self._steps = steps
        self._stream = stream if stream is not None else sys.stdout
        self._bar: Any = None
        if shows_bars(self._stream) and not quiet:
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task("starting", total=steps, completed=done, summary="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=name)
        else:
            log.info("%s", name)

    def step(self, metrics: Mapping[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.log(metrics["step"], {**metrics, **numbers_of_lists(metrics)})
        if self._quiet:
            return
        if self._bar is None:
            self._stream.write(f"step {metrics['step']}/{self._steps}  {brief(metrics)}\n")
            self._stream.flush()
            return
        self._bar.update(self._task, completed=metrics["step"], summary=brief(metrics))

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Passes held-out values on to the trackers, after so many completed steps."""
        if self._trackers is not None:
            self._trackers.log(step, {f"{HELD_OUT}{name}": v for name, v in values.items()})

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Passes the distribution of some values on to those trackers that have histograms."""
        if self._trackers is not None and len(values):
            self._trackers.histogram(step, name, values)

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Passes a table on to those trackers that have tables."""
        if self._trackers is not None:
            self._trackers.table(step, name, columns, rows)


def brief(metrics: Mapping[str, Any]) -> str:
    """The few figures of a step that fit beside a bar."""

    def told(key: str, form: str) -> str:
        value = metrics.get(key)
        return "none" if value is None else form.format(value)

    return (
        f"loss {told('loss', '{:.4f}')}  length {told('response_length_mean', '{:.0f}')}  "
        f"cut {told('truncated_share', '{:.0%}')}  "
        f"{told('tokens_per_second', '{:.0f}')} tokens/s"
    )


# Clears a line, and leaves the cursor at its beginning.
CLEAR = "\r\x1b[K"


@contextmanager
def loading(
    *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[str], None]]:
    """Shows what a run does before its first step: yields a function that is called with the name
    of each thing when it begins. Off a terminal it shows nothing; the log tells what was found.

    A name stands in the last line until what is logged of it takes its place.
    """
    out = stream if stream is not None else sys.stderr
    shown = shows_bars(out) and not quiet

    def begins(name: str) -> None:
        if shown:
            out.write(f"{CLEAR}{name} …\r")
            out.flush()

    try:
        yield begins
    finally:
        if shown:
            out.write(CLEAR)
            out.flush()


def shows_bars(stream: TextIO) -> bool:
    """Whether a bar may be drawn there."""
    disabled = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    return stream.isatty() and not disabled


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[summary]}"),
        TimeRemainingColumn(),
        console=Console(file=stream),
    )

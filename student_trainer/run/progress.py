"""What a run shows while it works: a bar on a terminal, otherwise one JSON line per step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from student_trainer.trackers import Trackers


class Progress:
    """Context manager. Call ``step`` after every step and ``phase`` when another part of
    the run begins. Trackers receive the steps too.

    The bar needs a terminal and ``TQDM_DISABLE`` unset; ``NO_COLOR`` is respected. Without
    a bar, ``step`` writes the step's metrics as one JSON line, unless it is ``quiet``.
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
        self._stream = stream if stream is not None else sys.stdout
        disabled = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
        self._bar: Any = None
        if self._stream.isatty() and not disabled and not quiet:
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

    def step(self, metrics: Mapping[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.log(metrics["step"], metrics)
        if self._quiet:
            return
        if self._bar is None:
            self._stream.write(json.dumps(metrics) + "\n")
            self._stream.flush()
            return
        loss = "none" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        length = metrics["response_length_mean"]
        summary = (
            f"loss {loss}  length {'none' if length is None else f'{length:.0f}'}  "
            f"{metrics['tokens_per_second']:.0f} tokens/s"
        )
        self._bar.update(self._task, completed=metrics["step"], summary=summary)


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

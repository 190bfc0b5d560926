"""Trackers: where a run's metrics go besides its own files. All are off by default.

A new tracker is one file with ``start(facts) -> Tracker`` and one row in ``TRACKERS``.
No tracker asks for a login, and one that cannot start is an error before the first step.
A tracker that fails later is left out with a warning; metrics.jsonl has every step.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.program.distribution import install_command

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What a tracker receives at the start.

    Attributes:
        project, name: of the run.
        directory: of the run, for the files that a tracker writes.
        config: the settings as nested JSON values, without secrets.
    """

    project: str
    name: str
    directory: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """What ``start`` of a tracker's file returns."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None: ...

    def close(self, failed: bool) -> None: ...


@runtime_checkable
class HasHistograms(Protocol):
    """A tracker whose own API has histograms."""

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None: ...


@dataclass(frozen=True)
class TrackerRow:
    """A known tracker.

    Attributes:
        module: its file here.
        package: the package it imports.
        extra: the extra that installs the package.
    """

    module: str
    package: str
    extra: str


TRACKERS: Mapping[str, TrackerRow] = {
    "tensorboard": TrackerRow("tensorboard", "tensorboard", "tensorboard"),
    "trackio": TrackerRow("trackio", "trackio", "trackio"),
    "wandb": TrackerRow("wandb", "wandb", "wandb"),
    "mlflow": TrackerRow("mlflow", "mlflow", "mlflow"),
}


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is not in ``TRACKERS``, with the nearest one, and for
    a name that is given twice."""
    for name in names:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name.lower(), TRACKERS, n=1)
            advice = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"there is no tracker {name!r}; {advice}there are {', '.join(TRACKERS)}"
            )
    if len(set(names)) != len(names):
        raise ValueError("a tracker is named twice")


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigurationError for a tracker whose package is missing or does not import."""
    for name in names:
        row = TRACKERS[name]
        try:
            with _off_standard_output():
                importlib.import_module(row.package)
        except ImportError as error:
            raise ConfigurationError(
                f"the tracker {name} cannot be loaded: {error}",
                where="tracking.trackers",
                fix=install_command(row.extra),
            ) from error


class Trackers:
    """All trackers of a run as one context manager; without names it does nothing."""

    def __init__(self, names: Sequence[str], facts: RunFacts) -> None:
        """Starts them.

        Raises:
            ConfigurationError: a package is missing, or a tracker cannot start.
        """
        check_installed(names)
        self._open: dict[str, Tracker] = {}
        for name in names:
            module = importlib.import_module(f"{__name__}.{TRACKERS[name].module}")
            try:
                with _off_standard_output():
                    self._open[name] = module.start(facts)
            except BaseException as error:
                self._close(failed=True)
                if isinstance(error, LsmError) or not isinstance(error, Exception):
                    raise
                raise ConfigurationError(
                    f"the tracker {name} did not start: {error}",
                    where="tracking.trackers",
                    fix="see the tracker's own documentation, or leave it out",
                ) from error

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close(failed=error is not None)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Passes on those of the metrics that are numbers."""
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and name != "step"
        }
        self._each(step, lambda tracker: tracker.log(step, numbers))

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Passes on a table of a step: values that are texts, numbers or None."""
        self._each(step, lambda tracker: tracker.table(step, name, columns, rows))

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Passes the distribution of some values, at least one, on to trackers that have
        histograms."""

        def tell(tracker: Tracker) -> None:
            if isinstance(tracker, HasHistograms):
                tracker.histogram(step, name, values)

        self._each(step, tell)

    def _each(self, step: int, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                with _off_standard_output():
                    tell(tracker)
            except Exception as error:  # of a library or its network: training continues
                log.warning(
                    "the tracker %s failed at step %d and is left out from here on; "
                    "metrics.jsonl has every step: %s", name, step, error,
                )  # fmt: skip
                del self._open[name]

    def _close(self, failed: bool) -> None:
        for name, tracker in self._open.items():
            try:
                with _off_standard_output():
                    tracker.close(failed)
            except Exception as error:
                log.warning("the tracker %s did not end cleanly: %s", name, error)
        self._open = {}


def _off_standard_output() -> contextlib.AbstractContextManager[Any]:
    """Sends what trackers print to standard error: standard output has the run's own lines."""
    return contextlib.redirect_stdout(sys.stderr)

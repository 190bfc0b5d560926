"""Trackio: local, in the directory that ``TRACKIO_DIR`` names, or on the Space that
``TRACKIO_SPACE_ID`` names. ``trackio show`` displays the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from student_trainer.trackers import RunFacts


class Trackio:
    def __init__(self, facts: RunFacts) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=facts.project,
            name=facts.name,
            config=dict(facts.config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        import pandas as pd
        import trackio

        frame = pd.DataFrame([list(row) for row in rows], columns=list(columns))
        self._run.log({name: trackio.Table(dataframe=frame)}, step=step)

    def close(self, failed: bool) -> None:
        import trackio

        trackio.finish()  # without this its exit hook would report the run a second time


def start(facts: RunFacts) -> Trackio:
    return Trackio(facts)

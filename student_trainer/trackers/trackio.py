"""Trackio: local, in the directory ``TRACKIO_DIR`` names; ``TRACKIO_SPACE_ID`` sends
it to a Space. ``trackio show`` displays it."""

from __future__ import annotations

from collections.abc import Mapping
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

    def close(self, failed: bool) -> None:
        import trackio

        trackio.finish()  # its own exit hook would say it a second time


def start(facts: RunFacts) -> Trackio:
    return Trackio(facts)

"""TensorBoard: event files in the run's ``tensorboard`` directory."""

from __future__ import annotations

import json
from collections.abc import Mapping

from student_trainer.trackers import RunFacts


class TensorBoard:
    def __init__(self, facts: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(facts.directory / "tensorboard"))
        text = json.dumps(facts.config, indent=1, default=str)
        self._writer.add_text("config", f"```json\n{text}\n```", 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


def start(facts: RunFacts) -> TensorBoard:
    return TensorBoard(facts)

"""TensorBoard: event files in the run's ``tensorboard`` directory."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        self._writer.add_text(
            name, "\n".join(f"| {' | '.join(map(_cell, x))} |" for x in lines), step
        )

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        self._writer.add_histogram(f"{name}/histogram", np.array(values, np.float64), step)

    def close(self, failed: bool) -> None:
        self._writer.close()


def _cell(value: Any) -> str:
    """As a cell of Markdown, which shows a text as it is: nothing in it is markup."""
    text = html.escape(str(value), quote=False)
    for character in "\\`*_{}[]#+!|~":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", "<br>")


def start(facts: RunFacts) -> TensorBoard:
    return TensorBoard(facts)

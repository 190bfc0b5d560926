"""Weights & Biases. ``WANDB_MODE``, ``WANDB_API_KEY`` and its other variables apply; it may
never ask for a login.

It does not capture the command line, the code, the repository or the console, because
these can contain secrets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.trackers import RunFacts

WITHOUT_LOGIN = ("offline", "disabled", "dryrun")


class WeightsAndBiases:
    def __init__(self, facts: RunFacts) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode not in WITHOUT_LOGIN and not wandb.login(prompt=False, verify=False):
            raise ConfigurationError(
                "Weights & Biases has no API key",
                where="tracking.trackers",
                fix="set WANDB_API_KEY, run: wandb login, or set WANDB_MODE=offline",
            )
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", facts.project),
            name=os.environ.get("WANDB_NAME", facts.name),
            dir=os.environ.get("WANDB_DIR", str(facts.directory)),
            config=dict(facts.config),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
            ),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table}, step=step)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        import wandb

        self._run.log({f"{name}/histogram": wandb.Histogram(list(values))}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def start(facts: RunFacts) -> WeightsAndBiases:
    return WeightsAndBiases(facts)

"""MLflow: the server or store ``MLFLOW_TRACKING_URI`` names, else ``mlflow.db`` (SQLite)
in the run's directory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from student_trainer.trackers import RunFacts

MOST_PARAMETERS = 100  # of one call, a limit of its servers


class MLflow:
    def __init__(self, facts: RunFacts) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        own = f"sqlite:///{(facts.directory / 'mlflow.db').resolve()}"
        self._client: Any = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", own))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", facts.project)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run: str = self._client.create_run(number, run_name=facts.name).info.run_id
        parameters = [Param(key, text) for key, text in _flat(facts.config)]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + MOST_PARAMETERS])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def start(facts: RunFacts) -> MLflow:
    return MLflow(facts)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)

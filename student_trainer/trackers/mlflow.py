"""MLflow: the server or store that ``MLFLOW_TRACKING_URI`` names, otherwise ``mlflow.db``
(SQLite) in the run's directory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.program.settings_keys import flatten

from student_trainer.trackers import RunFacts

MOST_PARAMETERS = 100  # per call, a limit of its servers


class MLflow:
    def __init__(self, facts: RunFacts) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        own = f"sqlite:///{(facts.directory / 'mlflow.db').resolve()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI", own)
        # Otherwise its files would go into a folder beside whoever started the run.
        files = (facts.directory / "mlflow-files").resolve().as_uri() if uri == own else None
        self._client: Any = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", facts.project)
        experiment = self._client.get_experiment_by_name(name)
        number = (
            experiment.experiment_id if experiment else self._client.create_experiment(name, files)
        )
        self._run: str = self._client.create_run(number, run_name=facts.name).info.run_id
        parameters = [Param(key, str(value)) for key, value in flatten(facts.config).items()]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + MOST_PARAMETERS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=found)

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        # In the form of its own tables, which its page shows; ``log_table`` needs pandas.
        content = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self._run, content, f"{name}/step-{step:06d}.json")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def start(facts: RunFacts) -> MLflow:
    return MLflow(facts)

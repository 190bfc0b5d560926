"""Trackers for real: what they wrote is read back; nothing asks for a login."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer import trackers as trackers_module
from student_trainer.settings.run import TrackingSettings
from student_trainer.trackers import TRACKERS, RunFacts, TrackerRow, Trackers

FIGURES = (
    {"step": 1, "loss": 0.5, "clipped": True, "student_entropy": None, "time": "now"},
    {"step": 2, "loss": 0.25, "clipped": False, "student_entropy": 1.5, "time": "then"},
)
COLUMNS = ("loss", "prompt", "text")
ROWS = [(1.5, "Say <b>|`hi`", "one\ntwo"), (None, "", "é")]
LENGTHS = [3, 3, 40]
CONFIG = {"loss": {"kind": "lsm", "top_k": 32}, "run": {"name": "one"}}


def facts(directory: Path) -> RunFacts:
    return RunFacts(project="project", name="one", directory=directory, config=CONFIG)


def track(name: str, directory: Path) -> None:
    with Trackers([name], facts(directory)) as trackers:
        for figures in FIGURES:
            trackers.log(figures["step"], figures)
        trackers.table(2, "rollouts", COLUMNS, ROWS)
        trackers.histogram(2, "response_length", LENGTHS)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        TrackingSettings(trackers=("tensorbord",))
    with pytest.raises(ValueError, match="named twice"):
        TrackingSettings(trackers=("wandb", "wandb"))
    assert TrackingSettings().trackers == ()


def test_a_missing_package_is_refused_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigurationError, match="tracker tensorboard cannot be loaded") as caught:
        Trackers(["tensorboard"], facts(tmp_path))
    assert "pip install '.[tensorboard]'" in str(caught.value)


def test_tensorboard_writes_what_its_reader_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in found.Scalars("student_entropy")] == [(2, 1.5)]
    assert set(found.Tags()["scalars"]) == {"loss", "clipped", "student_entropy"}
    (text,) = found.Tensors("config/text_summary")
    assert b'"top_k": 32' in text.tensor_proto.string_val[0]
    (lengths,) = found.Histograms("response_length/histogram")
    told = lengths.histogram_value
    assert (lengths.step, told.min, told.max, told.num, told.sum) == (2, 3, 40, 3, 46)
    (table,) = found.Tensors("rollouts/text_summary")
    assert table.step == 2
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines == [
        "| loss | prompt | text |",
        "| --- | --- | --- |",
        r"| 1.5 | Say &lt;b&gt;\|\`hi\` | one<br>two |",
        "| None |  | é |",
    ]


def test_mlflow_keeps_a_run_in_the_runs_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    track("mlflow", tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.top_k"] == "32"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]
    (kept,) = (tmp_path / "mlflow-files").rglob("step-000002.json")
    assert kept.parent.name == "rollouts"
    assert json.loads(kept.read_text()) == {
        "columns": list(COLUMNS), "data": [list(row) for row in ROWS],
    }  # fmt: skip
    with pytest.raises(RuntimeError), Trackers(["mlflow"], facts(tmp_path)):
        raise RuntimeError("the run failed")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


# A subprocess: wandb reads its variables once, and its service must not outlive the test.
WANDB = """
import json, sys
from pathlib import Path
from tests.trainer.test_trackers import track
track("wandb", Path(sys.argv[1]))
print("standard output is the run's own")
"""


def wandb_process(
    home: Path, directory: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", WANDB, str(directory)],
        env={**kept, "HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_wandb_offline_writes_the_run_and_no_secret(tmp_path: Path) -> None:
    canary = "canary0123456789canary0123456789canary01"
    done = wandb_process(
        tmp_path, tmp_path, WANDB_MODE="offline", WANDB_API_KEY=canary, HF_TOKEN=canary
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "standard output is the run's own\n"
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = b"".join(p.read_bytes() for p in (tmp_path / "wandb").rglob("*") if p.is_file())
    assert b"student_entropy" in log.read_bytes()
    assert b"top_k" in log.read_bytes()
    assert b"response_length/histogram" in log.read_bytes()
    (table,) = (tmp_path / "wandb").rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [list(row) for row in ROWS]
    assert canary.encode() not in written
    assert canary not in done.stdout + done.stderr


def test_wandb_without_a_key_fails_and_does_not_ask(tmp_path: Path) -> None:
    done = wandb_process(tmp_path, tmp_path)
    assert done.returncode == 1
    assert "has no API key. Fix: set WANDB_API_KEY" in done.stderr
    assert "WANDB_MODE=offline" in done.stderr


def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from tests.trainer.test_trackers import track\n"
        "track('trackio', Path(sys.argv[1]))\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "print(json.dumps(SQLiteStorage.get_logs('project', 'one'), default=str))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = json.loads(done.stdout)
    assert [(row["step"], row["loss"]) for row in logs if "loss" in row] == [(1, 0.5), (2, 0.25)]


class Failing:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.steps.append(step)
        raise OSError("the network went away")

    def close(self, failed: bool) -> None:
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_named_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing, module = Failing(), type(sys)("student_trainer.trackers.failing")
    module.start = lambda facts: failing
    monkeypatch.setitem(sys.modules, module.__name__, module)
    rows: dict[str, Any] = {**TRACKERS, "failing": TrackerRow("failing", "json", "failing")}
    monkeypatch.setattr(trackers_module, "TRACKERS", rows)
    with (
        caplog.at_level(logging.WARNING, "student_trainer"),
        Trackers(["tensorboard", "failing"], facts(tmp_path)) as trackers,
    ):
        for figures in FIGURES:
            trackers.log(figures["step"], figures)
    assert failing.steps == [1]
    assert "the tracker failing failed at step 1" in caplog.text
    assert "the network went away" in caplog.text

"""The cpu profile for real: one teacher, two runs, a teacher that dies between their steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from student_trainer.quickstart.prepare import smollm2_dir
from tests.docker.engine import ROOT, Engine
from tests.docker.images import Images

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

RUNS = ("first", "second")
USER = 10001
PATIENCE = 1500.0


def service(run: str) -> str:
    return f"{run}-run"


@dataclass(frozen=True)
class Project:
    """The compose project under test; ``runs`` is what its containers see as /runs."""

    engine: Engine
    name: str
    runs: Path
    extra: dict[str, str]

    def compose(self, *arguments: str) -> str:
        command = [*self.engine.compose, "--project-name", self.name, "--profile", "cpu"]
        return self.engine.execute([*command, *arguments], timeout=PATIENCE, extra=self.extra)

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).split()[0]

    def state(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.inspect(self.container(service))["State"]
        return found

    def steps(self, run: str) -> list[dict[str, Any]]:
        file = self.runs / run / "metrics.jsonl"
        if not file.exists():
            return []
        return [
            json.loads(line)
            for line in file.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Returns once the condition holds; a trainer that fails ends the waiting."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"{what}\n{self.compose('logs', '--tail=50')}"
            for run in RUNS:
                state = self.state(service(run))
                failed = state["Status"] == "exited" and state["ExitCode"] != 0
                assert not failed, self.compose("logs", "--tail=50")
            time.sleep(0.5)

    def metrics(self, token: str | None) -> str:
        """Raises HTTPError when the server refuses."""
        address = self.compose("port", "teacher", "8080").strip()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        asked = urllib.request.Request(f"http://{address}/metrics", headers=headers)
        with urllib.request.urlopen(asked, timeout=30) as reply:
            text: str = reply.read().decode()
        return text


@pytest.fixture(scope="module")
def project(
    containers: Engine, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    models, runs = folder / "models", folder / "runs"
    prepared = smollm2_dir()
    shutil.copytree(prepared, models / "models" / prepared.name)
    runs.mkdir()
    for path in (folder.parent.parent, folder.parent, folder):
        path.chmod(0o755)
    for path in (runs, models, *models.rglob("*")):
        os.chown(path, USER, USER)
    secrets = folder / "secrets"
    subprocess.run(
        [sys.executable, str(ROOT / "docker/demo/make_tokens.py"), str(secrets)], check=True
    )
    extra = {
        "LSM_SECRETS": str(secrets),
        "LSM_TEACHER_IMAGE": images.teacher,
        "LSM_TRAINER_IMAGE": images.trainer,
        "LSM_MODELS": str(models),
        "LSM_RUNS": str(runs),
        "LSM_GRPC_PORT": "0",
        "LSM_HTTP_PORT": "0",
    }
    found = Project(containers, f"lsm-test-{os.getpid()}", runs, extra)
    try:
        found.compose("up", "--detach", "--no-build")
        yield found
    finally:
        found.compose("down", "--volumes", "--timeout", "60")


def test_two_runs_share_a_teacher_that_dies_and_comes_back(project: Project) -> None:
    project.wait(lambda: all(project.steps(run) for run in RUNS), "no first step")
    before = {run: len(project.steps(run)) for run in RUNS}
    teacher = project.container("teacher")
    assert project.state("teacher")["Health"]["Status"] == "healthy"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        project.metrics(None)
    secrets = Path(project.extra["LSM_SECRETS"])
    metrics = project.metrics((secrets / "metrics.token").read_text().strip())
    for run in RUNS:
        assert f'run="{run}"' in metrics

    project.engine.run("kill", "--signal", "KILL", teacher)
    assert project.state("teacher")["ExitCode"] == 137
    assert project.state("teacher")["Running"] is False
    project.engine.run("start", teacher)

    project.wait(
        lambda: all(project.state(service(run))["Status"] == "exited" for run in RUNS),
        "no end of the runs",
    )
    logs = project.compose("logs", "--no-color")
    for run in RUNS:
        assert (secrets / f"{run}.token").read_text().strip() not in logs
        check_run(project, run, before[run])
    summaries = [json.loads((project.runs / run / "summary.json").read_text()) for run in RUNS]
    assert summaries[0]["teacher_identity"] == summaries[1]["teacher_identity"]
    # Other seeds: the runs are not copies of each other.
    assert project.steps("first")[0]["loss"] != project.steps("second")[0]["loss"]


def check_run(project: Project, run: str, steps_before: int) -> None:
    """A run that lost no step to the teacher's death and learnt something."""
    assert project.state(service(run))["ExitCode"] == 0
    lines = project.steps(run)
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert steps_before < 6, "the run had ended before the teacher was killed"
    assert len({line["teacher_identity"] for line in lines}) == 1
    summary = json.loads((project.runs / run / "summary.json").read_text())
    assert summary["run"] == run
    assert summary["reverse_kl_after"] < summary["reverse_kl_before"]
    assert (project.runs / run / "model" / "model.safetensors").stat().st_size > 0
    assert (project.runs / run / "report.html").exists()

"""A container engine for the tests: the one that runs here, or one of their own.

An engine of their own lives in a folder of its own with its own socket, so that it
meets no other, and is ended with everything it holds. That needs root and Debian's
docker.io (``make test-docker`` installs it where nothing else answers).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Engine:
    """A client that can build with BuildKit, a compose, and the environment that
    leads both to the engine."""

    docker: str
    compose: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, timeout: float = 1200.0, check: bool = True) -> str:
        """Standard output of ``docker ARGUMENTS``."""
        return self.execute([self.docker, *arguments], timeout=timeout, check=check)

    def execute(
        self,
        command: list[str],
        *,
        timeout: float,
        check: bool = True,
        extra: dict[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            command,
            env=os.environ | self.environment | (extra or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        (facts,) = json.loads(self.run("inspect", name))
        found: dict[str, Any] = facts
        return found


def client() -> str:
    """The first ``docker`` on the PATH that has BuildKit: with buildx, or from before 23,
    when BuildKit needed none."""
    for folder in os.get_exec_path():
        path = shutil.which("docker", path=folder)
        if path is None:
            continue
        if _succeeds([path, "buildx", "version"]):
            return path
        version = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False
        ).stdout
        if int(version.split()[2].split(".")[0]) < 23:
            return path
    raise AssertionError("no docker client with BuildKit: install docker.io or docker-buildx")


def compose(docker: str) -> tuple[str, ...]:
    if _succeeds([docker, "compose", "version"]):
        return (docker, "compose")
    found = shutil.which("docker-compose")
    assert found is not None, "neither docker compose nor docker-compose is installed"
    return (found,)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """The engine that answers already, or one in ``folder`` for as long as the context."""
    docker = client()
    if _succeeds([docker, "info"]):
        yield Engine(docker, compose(docker))
        return
    socket = folder / "docker.sock"
    command = ["dockerd", "--host", f"unix://{socket}", "--data-root", str(folder / "data")]
    command += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")]
    log = folder / "dockerd.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    own = Engine(docker, compose(docker), {"DOCKER_HOST": f"unix://{socket}"})
    try:
        end = time.monotonic() + START_SECONDS
        while not _succeeds([docker, "info"], own.environment):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        yield own
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes of layers


def _succeeds(command: list[str], environment: dict[str, str] | None = None) -> bool:
    done = subprocess.run(
        command, env=os.environ | (environment or {}), capture_output=True, check=False
    )
    return done.returncode == 0

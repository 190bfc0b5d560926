"""The image as it should be run, under the attacks of proof 23: proof 25 (docs/reliability.md).

As another user than the image's own, with a root that nobody can write to, no new privileges,
no capabilities, a limit of memory and of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks.target import MIB, write_runs
from benchmarks.bench_attacks import ATTACKS
from tests.docker.engine import Engine
from tests.docker.images import Images
from tests.proofs.ledger import Proof, seconds
from tests.proofs.service.test_attacks import beside_attacks, note
from tests.support.models import make_tiny_model

pytestmark = [pytest.mark.docker, pytest.mark.timeout(5400)]

USER = 23456
MEMORY = "2g"
BOUNDS = (
    "--user", f"{USER}:{USER}", "--read-only", "--tmpfs", "/tmp:mode=1777,size=64m",
    "--security-opt", "no-new-privileges", "--cap-drop", "ALL",
    "--memory", MEMORY, "--memory-swap", MEMORY, "--pids-limit", "256",
)  # fmt: skip
PATIENCE = 180.0
# What a program could change in its container if nothing kept it from doing so.
LOOK = """
import json, os
def writable(path):
    try:
        open(path + "/written", "w").close()
    except OSError:
        return False
    return True
status = dict(line.split(":", 1) for line in open("/proc/1/status").read().splitlines())
paths = ("/", "/opt/lsm", "/usr/bin", "/home/lsm", "/etc", "/models")
print(json.dumps({"user": os.getuid(), "writable": [p for p in paths if writable(p)],
    "no_new_privileges": int(status["NoNewPrivs"]), "capabilities": int(status["CapEff"], 16)}))
"""


@dataclass(frozen=True)
class Container:
    engine: Engine
    name: str

    def facts(self) -> dict[str, Any]:
        about = self.engine.inspect(self.name)
        ports = about["NetworkSettings"]["Ports"]
        host = {port: f"127.0.0.1:{ports[f'{port}/tcp'][0]['HostPort']}" for port in (50051, 8080)}
        return {
            "grpc_address": host[50051],
            "http_address": host[8080],
            "pid": about["State"]["Pid"],
        }

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.facts()['http_address']}/readyz") as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.run("exec", self.name, "python", "-c", LOOK))
        return found


def loose_ends(found: dict[str, Any]) -> list[str]:
    """What of the bounds does not hold inside a container."""
    wrong = []
    if found["user"] in (0, 10001):
        wrong.append(f"it runs as user {found['user']}")
    if found["writable"]:
        wrong.append(f"it can write to {found['writable']}")
    if not found["no_new_privileges"]:
        wrong.append("it may gain privileges")
    if found["capabilities"]:
        wrong.append("it has capabilities")
    return wrong


@contextlib.contextmanager
def container(engine: Engine, image: str, folder: Path, *bounds: str) -> Iterator[Container]:
    """A ready teacher in a container with these bounds."""
    name = f"lsm-attacked-{os.getpid()}-{time.monotonic_ns()}"
    command = ["run", "--detach", "--name", name, *bounds]
    command += ["--publish", "127.0.0.1::50051", "--publish", "127.0.0.1::8080"]
    command += ["--volume", f"{folder}:/served:ro", image, "serve", "--host", "0.0.0.0"]
    command += ["--insecure-plaintext", "--model", "/served/model", "--dtype", "float32"]
    command += ["--set", "access.credentials_file=/served/runs.toml"]
    engine.run(*command)
    found = Container(engine, name)
    try:
        end = time.monotonic() + PATIENCE
        while not found.ready():
            assert engine.inspect(name)["State"]["Running"], engine.run("logs", name)
            assert time.monotonic() < end, engine.run("logs", name)
            time.sleep(0.5)
        yield found
    finally:
        engine.run("rm", "--force", name, check=False)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The model and the credentials, for the user that the container runs as."""
    folder = tmp_path / "served"
    make_tiny_model(folder / "model", max_position_embeddings=MIB)
    write_runs(folder / "runs.toml")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)
    for parent in (folder, *list(folder.parents)[:4]):
        if parent.is_relative_to(tmp_path.parents[2]):
            parent.chmod(0o755)
    return folder


@pytest.mark.soak
def test_proof_25_the_image_under_attack(
    containers: Engine, images: Images, served: Path, proof: Proof
) -> None:
    with container(containers, images.teacher, served, *BOUNDS) as found:
        wrong = loose_ends(found.look())
        proof.details["loose_ends"] = wrong
        proof.figure("bounds_that_do_not_hold", len(wrong), exactly=0)
        note(proof, beside_attacks(found.facts(), list(ATTACKS), seconds(4), proof.say))
        state = containers.inspect(found.name)["State"]
        proof.figure("out_of_memory", state["OOMKilled"], exactly=0)
        proof.figure("still_running", state["Running"], exactly=1)
    shutil.chown(served / "runs.toml", 0, 0)
    with container(containers, images.teacher, served, "--user", "0") as bare:
        proof.control("a container with none of these bounds", failed=bool(loose_ends(bare.look())))
    proof.settle()

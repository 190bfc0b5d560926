"""What is in the images, and what is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.docker.engine import ROOT, Engine
from tests.docker.images import CANARY, Images, layers_hold

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

# Of the layer that holds our own code: all that a new version of it costs to pull.
OWN_LAYER_BYTES = 8 << 20


@pytest.fixture(params=["teacher", "trainer"])
def image(images: Images, request: pytest.FixtureRequest) -> str:
    name: str = getattr(images, request.param)
    return name


def test_the_program_runs_as_an_ordinary_user_and_cannot_change_itself(
    containers: Engine, image: str
) -> None:
    script = "import os, teacher_proto; print(os.getuid(), os.access(teacher_proto.__path__[0], 2))"
    run = ("run", "--rm", "--entrypoint", "python", image, "-c", script)
    assert containers.run(*run).split() == ["10001", "False"]


def test_no_layer_holds_the_build_s_secrets_or_wheels(
    containers: Engine, image: str, tmp_path: Path
) -> None:
    assert layers_hold(containers, image, b"lsm_distill-", tmp_path), "the search finds nothing"
    assert not layers_hold(containers, image, CANARY.encode(), tmp_path)
    assert CANARY not in containers.run("history", "--no-trunc", image)
    listing = ("run", "--rm", "--entrypoint", "sh", image, "-c", "ls /etc/pip.conf /wheels /build")
    assert containers.run(*listing, check=False) == ""


def test_our_own_code_is_a_small_layer_above_its_dependencies(
    containers: Engine, image: str
) -> None:
    lines = containers.run("history", "--no-trunc", "--human=false", "--format={{json .}}", image)
    layers = [json.loads(line) for line in lines.splitlines()]
    own = next(i for i, layer in enumerate(layers) if "/dist/*.whl" in layer["CreatedBy"])
    assert "COPY /opt/lsm" in layers[own + 1]["CreatedBy"]
    assert int(layers[own]["Size"]) < OWN_LAYER_BYTES


def test_models_come_by_a_volume(containers: Engine, image: str) -> None:
    config = containers.inspect(image)["Config"]
    assert "/models" in config["Volumes"]
    assert config["User"] == "10001:10001"


def test_the_teacher_may_write_a_volume_of_tokenizers(containers: Engine, images: Images) -> None:
    volume = "/var/lib/lsm-distill/tokenizers"
    script = f"touch {volume}/written && stat --format %u {volume}"
    run = ("run", "--rm", "--volume", volume, "--entrypoint", "sh", images.teacher, "-c", script)
    assert containers.run(*run).strip() == "10001"


def test_the_teacher_s_health_check_is_the_grpc_probe(containers: Engine, images: Images) -> None:
    config = containers.inspect(images.teacher)["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "teacher-server", "probe"]


@pytest.mark.parametrize("profile", ["cpu", "gpu", "observability"])
def test_compose_takes_every_profile(containers: Engine, profile: str) -> None:
    command = [*containers.compose, "--profile", profile, "config", "--quiet"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)

"""Students' tokenizers survive a teacher's restart; read from the files, without an engine."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from teacher_server.config import ServeConfig
from tests.docker.engine import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SETTING = "tokenizers.folder="


def folder(service: str) -> Path:
    """``tokenizers.folder`` of one of compose's teachers."""
    if service == "teacher":
        settings = tomllib.loads((ROOT / "docker/demo/teacher.toml").read_text())
        found = ServeConfig.model_validate(settings).tokenizers.folder
        assert found is not None
        return found
    (argument,) = [one for one in COMPOSE["services"][service]["command"] if SETTING in one]
    return Path(argument.removeprefix(SETTING))


@pytest.mark.parametrize("service", ["teacher", "teacher-gpu"])
def test_compose_keeps_them_in_a_volume_of_the_image_s_user(service: str) -> None:
    about = COMPOSE["services"][service]
    named = dict(reversed(mount.split(":")) for mount in about["volumes"] if mount.count(":") == 1)
    assert named[str(folder(service))] in COMPOSE["volumes"]
    # A new volume takes the owner of the image's folder.
    lines = (ROOT / about["build"]["dockerfile"]).read_text().splitlines()
    (made,) = [line for line in lines if "install --directory --owner lsm" in line]
    assert str(folder(service)) in made.split()

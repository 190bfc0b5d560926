"""The lowest versions that pyproject.toml declares: `make test-floor` tries them, and what can
be told without installing them is told here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.packaging.environments import NAME, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = {
    line
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
    if not line.startswith(NAME)
}
STUBS = ROOT / "proto" / "teacher_proto" / "v1"


def printed(*extras: str) -> dict[str, Version]:
    """What the environment of `make test-floor` is made of."""
    command = [sys.executable, str(ROOT / "docker/requirements.py"), str(ROOT / "pyproject.toml")]
    lines = subprocess.run([*command, *extras], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/floors.py"), str(ROOT / "constraints.txt")],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.split("==") for line in done.stdout.splitlines())
    return {name: Version(version) for name, version in pairs}


def tested_set() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


@pytest.mark.parametrize("line", sorted(REQUIREMENTS))
def test_a_requirement_has_a_floor_that_is_no_higher_than_what_is_tested(line: str) -> None:
    requirement = Requirement(line)
    (lowest,) = (s.version for s in requirement.specifier if s.operator == ">=")
    known = tested_set().get(requirement.name)
    assert known is None or Version(lowest) <= known
    assert known is None or requirement.specifier.contains(known)


def test_every_floor_but_that_of_torch_is_installed() -> None:
    found = printed(*PROJECT["optional-dependencies"])
    assert found.keys() == {Requirement(line).name for line in REQUIREMENTS}
    for line in REQUIREMENTS:
        requirement = Requirement(line)
        lowest = next(s.version for s in requirement.specifier if s.operator == ">=")
        if requirement.name in ("torch", "triton"):
            assert found[requirement.name] == tested_set()[requirement.name]
        else:
            assert found[requirement.name] == Version(lowest)


def test_a_requirement_without_a_floor_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/floors.py"), str(ROOT / "constraints.txt")],
        input="numpy<3\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "'numpy<3' has no lower bound" in done.stderr


def test_the_floors_run_the_committed_stubs() -> None:
    floors = printed()
    for file in STUBS.glob("*_pb2_grpc.py"):
        (made_with,) = re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", file.read_text())
        assert floors["grpcio"] >= Version(made_with)
    for file in STUBS.glob("*_pb2.py"):
        (numbers,) = re.findall(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+),", file.read_text())
        assert floors["protobuf"] >= Version(".".join(numbers))

"""Committed stubs match their sources, and the base package stays light."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import teacher_proto

import student_trainer
import teacher_server

PROTO = Path(teacher_proto.__file__).parents[1]


def check(proto: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(proto / "generate.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stubs_are_those_of_the_sources() -> None:
    ended = check(PROTO)
    assert ended.returncode == 0, ended.stdout


def test_the_check_sees_drift(tmp_path: Path) -> None:
    shutil.copytree(PROTO, tmp_path / "proto")
    source = tmp_path / "proto" / "teacher_proto" / "v1" / "array.proto"
    source.write_text(source.read_text().replace("bytes data = 3;", "bytes data = 3; int32 x = 4;"))
    ended = check(tmp_path / "proto")
    assert ended.returncode == 1
    assert "committed/array_pb2.py" in ended.stdout
    assert "X_FIELD_NUMBER" in ended.stdout


HEAVY = ("torch", "transformers", "vllm", "fastapi", "uvicorn", "tokenizers", "peft")


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("teacher_proto", ("grpc", "numpy", "pydantic")),
        ("teacher_server", ("grpc", "numpy", "pydantic")),
        ("student_trainer", ("grpc", "numpy", "pydantic")),
        ("teacher_proto.client", ("pydantic",)),
        ("teacher_proto.codec", ("pydantic", "grpc")),
        ("teacher_proto.program.settings", ("grpc", "numpy")),
        ("teacher_proto.program.entrypoint", ("grpc", "numpy", "pydantic")),
        ("teacher_proto.tokenizer_hash", ("grpc", "numpy", "pydantic")),
    ],
)
def test_imports(module: str, light: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*sorted(set(sys.modules) & set({(*HEAVY, *light)!r})))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


PACKAGES = (teacher_proto, teacher_server, student_trainer)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_public_names_are_there(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        assert getattr(value, "__name__", name) == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_types_are_published(package: ModuleType) -> None:
    assert (Path(str(package.__file__)).parent / "py.typed").read_bytes() == b""

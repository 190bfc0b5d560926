"""``~`` stands for the home folder in every setting that is a path, of both programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings import load_settings
from teacher_proto.program.settings_keys import annotations_at

from student_trainer.settings.train import TrainConfig
from teacher_server.config import ServeConfig

TRAINER = {
    "run.output_dir": "~/run",
    "student.model": "~/model",
    "student.chat_template": "~/template.jinja",
    "data.train": "~/a.jsonl",
    "data.held_out": "~/b.jsonl",
    "rollout.vllm.folder": "~/weights",
    "teacher.token_file": "~/token",
    "teacher.ca": "~/ca.pem",
    "teacher.cert": "~/cert.pem",
    "teacher.key": "~/key.pem",
    "checkpoint.resume": "~/run/checkpoints/step-000001",
}
SERVER = {
    "teachers.a.model": "~/model",
    "tokenizers.folder": "~/tokenizers",
    "tls.cert": "~/cert.pem",
    "tls.key": "~/key.pem",
    "tls.client_ca": "~/ca.pem",
    "access.credentials_file": "~/credentials",
    "access.audit_file": "~/audit",
    "ready_file": "~/ready",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
    return settings


@pytest.mark.parametrize(("model", "paths"), [(TrainConfig, TRAINER), (ServeConfig, SERVER)])
def test_paths_of_settings(home: Path, model: type[BaseModel], paths: dict[str, str]) -> None:
    overrides = [f"{key}={path}" for key, path in paths.items()]
    if model is TrainConfig:
        overrides.append("rollout.engine=vllm")  # the folder is for this engine
    settings = load_settings(model, overrides=overrides).settings
    for key, path in paths.items():
        assert str(value(settings, key)) == str(home / path[2:]), key


@pytest.mark.parametrize(("model", "paths"), [(TrainConfig, TRAINER), (ServeConfig, SERVER)])
def test_no_path_is_forgotten(model: type[BaseModel], paths: dict[str, str]) -> None:
    def keys(inner: type[BaseModel], before: tuple[str, ...] = ()) -> set[str]:
        found: set[str] = set()
        for name, field in inner.model_fields.items():
            if "Path" in str(field.annotation):
                found.add(".".join((*before, name)))
            for one in annotations_at(model, (*before, name)):
                if isinstance(one, type) and issubclass(one, BaseModel):
                    found |= keys(one, (*before, name))
        return found

    assert keys(model) <= set(paths)


def test_texts_that_are_no_paths_stay_as_they_are(home: Path) -> None:
    overrides = ["run.output_dir=x", "student.model=m", "data.train=d", "data.system=~/x"]
    settings = load_settings(TrainConfig, overrides=overrides).settings
    assert settings.data.system == "~/x"
    assert settings.student.model == "m"


def test_a_home_that_is_not_known_is_refused() -> None:
    overrides = ["student.model=m", "data.train=d", "run.output_dir=~nobody-of-this-name/x"]
    with pytest.raises(ConfigurationError, match=r"run\.output_dir .*write the folder's own path"):
        load_settings(TrainConfig, overrides=overrides)


def test_paths_of_a_client(home: Path) -> None:
    given = ClientCredentials(token_file=Path("~/token"), ca=Path("/ca.pem"))
    assert (given.token_file, given.ca, given.cert) == (home / "token", Path("/ca.pem"), None)

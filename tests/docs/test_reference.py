"""The generated pages of docs/reference are those of the code, and explain every key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from student_trainer.settings.train import TrainConfig
from teacher_server.config import ServeConfig
from tools.reference import settings
from tools.reference.__main__ import FOLDER, drift, server_flags


def test_the_pages_are_those_of_the_code() -> None:
    assert drift(FOLDER) == []


def test_the_check_sees_drift(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    page = tmp_path / "teacher-server-settings.md"
    page.write_text(page.read_text().replace("`50051`", "`50052`"))
    (tmp_path / "of-something-gone.md").write_text("old\n")
    lines = drift(tmp_path)
    assert "-old\n" in lines
    assert [line for line in lines if line.startswith("+|") and "`50051`" in line]


@pytest.mark.parametrize("model", [ServeConfig, TrainConfig])
def test_every_key_has_a_meaning(model: type[BaseModel]) -> None:
    found = settings.sections(model)
    assert len({section.name for section in found}) == len(found)
    for section in found:
        for setting in section.settings:
            assert re.match("[A-Zπ`v]", setting.meaning), setting.key
            assert setting.meaning.endswith((".", ")")), setting.key


def test_flags_are_those_of_the_program() -> None:
    assert server_flags()["tls.client_ca"] == "--tls-client-ca"
    assert server_flags()["engine.name"] == "--engine"


class Left(BaseModel):
    """The left way."""

    kind: Literal["left"] = "left"
    size: int = Field(default=1, ge=1, description="Size, in steps.")
    depth: int = Field(default=2, description="Depth, in metres.")


class Right(BaseModel):
    """The right way."""

    kind: Literal["right"] = "right"
    size: int = Field(default=1, ge=1, description="Size, in steps.")


class Named(BaseModel):
    """One by its name."""

    share: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Part.")


class House(BaseModel):
    """A house."""

    limit_bytes: int = Field(default=2 << 20, description="Limit, in bytes.")
    way: Annotated[Left | Right, Field(discriminator="kind")] = Field(
        default_factory=Left, description="Which way."
    )
    others: dict[str, Named] = Field(default_factory=dict)


def test_types_defaults_and_alternatives() -> None:
    top, way, others = settings.sections(House)
    assert (top.name, top.intro) == ("", "A house.")
    assert top.settings == (
        settings.Setting("limit_bytes", "integer", "`2097152` (2 MiB)", "Limit, in bytes."),
    )
    assert (way.name, way.intro) == ("way", "Which way.")
    kind = "`left`: The left way. `right`: The right way."
    assert way.settings == (
        settings.Setting("way.kind", '`"left"` or `"right"`', '`"left"`', kind),
        settings.Setting("way.size", "integer, ≥ 1", "`1`", "Size, in steps."),
        settings.Setting("way.depth", "integer", "`2`", "Depth, in metres.", ("left",)),
    )
    assert (others.name, others.intro) == ("others.NAME", "One by its name.")
    assert others.settings == (
        settings.Setting("others.NAME.share", "number, > 0 and ≤ 1", "unset", "Part."),
    )


def test_a_key_without_a_meaning_is_refused() -> None:
    class Silent(BaseModel):
        """A section."""

        key: int = 1

    with pytest.raises(ValueError, match="key has no description"):
        settings.sections(Silent)

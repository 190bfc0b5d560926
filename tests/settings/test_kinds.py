"""Sections that come in kinds, of which one may be a class of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, SerializeAsAny, ValidationError
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings import load_settings
from teacher_proto.program.settings_show import Resolved, describe, to_toml
from teacher_proto.program.settings_types import Kinds, Settings


class Shape(Settings):
    kind: str = ""
    size: float = 1.0


class Circle(Shape):
    kind: Literal["circle"] = "circle"


class Polygon(Shape):
    kind: Literal["polygon"] = "polygon"
    sides: Annotated[int, Field(ge=3)] = 3


class Own(Shape):
    colour: str = "red"


def load_own(name: str) -> type[Shape]:
    if name != "mine:Own":
        raise ConfigurationError("there is no such class", where="shape.kind", fix="write it")
    return Own


NAMED: dict[str, type[Shape]] = {"circle": Circle, "polygon": Polygon}


class Config(Settings):
    shape: Annotated[
        SerializeAsAny[Shape], Kinds("shape", named=NAMED, load=load_own, default="circle")
    ] = Field(default_factory=Circle)
    more: tuple[
        Annotated[SerializeAsAny[Shape], Kinds("more", named=NAMED, load=load_own)], ...
    ] = ()


def load(*overrides: str, **values: Any) -> Resolved[Config]:
    return load_settings(Config, (), "LSM_KINDS__", overrides, values)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*overrides)
    return str(caught.value)


def test_the_kind_chooses_the_class() -> None:
    assert load().settings.shape == Circle()
    assert load("shape.size=2").settings.shape == Circle(size=2)
    assert load("shape.kind=polygon", "shape.sides=4").settings.shape == Polygon(sides=4)
    assert load("shape.kind=mine:Own", "shape.colour=blue").settings.shape == Own(
        kind="mine:Own", colour="blue"
    )
    assert Config(shape=Polygon()).shape == Polygon()


def test_each_element_of_a_list_has_its_kind() -> None:
    raw = {"more": [{"kind": "polygon", "sides": 5}, {"kind": "mine:Own"}]}
    found = Config.model_validate(raw)
    assert found.more == (Polygon(sides=5), Own(kind="mine:Own"))
    assert Config.model_validate(found.model_dump(mode="json")) == found
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"more": [{"kind": "polygon", "sides": 2}]})
    assert caught.value.errors()[0]["loc"] == ("more", 0, "sides")
    with pytest.raises(ValidationError, match=r"more\.kind: is required and not set"):
        Config.model_validate({"more": [{"size": 2}]})


def test_all_fields_are_shown_written_and_dumped(tmp_path: Path) -> None:
    found = load("shape.kind=mine:Own", "shape.colour=blue")
    assert 'shape.colour = "blue" (flag --set)' in describe(found)
    assert found.settings.model_dump()["shape"] == {
        "kind": "mine:Own",
        "size": 1.0,
        "colour": "blue",
    }
    file = tmp_path / "config.toml"
    file.write_text(to_toml(found.settings))
    again = load_settings(Config, [file])
    assert again.settings == found.settings
    assert again.origins["shape.colour"] == f"file {file}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["shape.kind=cirle"], "shape.kind (flag --set): there is no kind 'cirle'"),
        (["shape.kind=cirle"], "did you mean circle?"),
        (["shape.kind=3"], "shape.kind (flag --set): there is no kind '3'"),
        (["shape.kind=other:Own"], "shape.kind (flag --set): there is no such class. Fix: write"),
        (["shape.sides=4"], 'is a setting of shape.kind = "polygon", and not of the default'),
        (
            ["shape.kind=mine:Own", "shape.sides=4"],
            'is a setting of shape.kind = "polygon", and not of shape.kind = "mine:Own"',
        ),
        (["shape.kind=mine:Own", "shape.color=blue"], "did you mean shape.colour?"),
        (["shape.kind=polygon", "shape.sides=2"], "shape.sides = 2 (flag --set): Input should be"),
        (["shape.colour=blue"], "shape.colour (flag --set): is not a setting"),
    ],
)
def test_refusals(overrides: list[str], says: str) -> None:
    assert says in refused(*overrides)


def test_the_environment_sets_keys_of_an_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_KINDS__SHAPE__COLOUR", "green")
    assert "shape.colour (env LSM_KINDS__SHAPE__COLOUR): is not a setting" in refused()
    assert load("shape.kind=mine:Own").settings.shape == Own(kind="mine:Own", colour="green")
    monkeypatch.setenv("LSM_KINDS__SHOPE__COLOUR", "green")
    assert "env LSM_KINDS__SHOPE__COLOUR: is not a setting" in refused()

"""Layers, their order, and what each value's origin is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from teacher_proto.errors import EXIT_CONFIGURATION, ConfigurationError
from teacher_proto.program.settings import load_settings
from teacher_proto.program.settings_show import Resolved, describe, to_toml


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rollout(Model):
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = 1.0
    group: int = 8
    stop: tuple[str, ...] = ()


class Lora(Model):
    rank: int = 16
    modules: tuple[str, ...] | Literal["all"] = "all"


class Lsm(Model):
    name: Literal["lsm"] = "lsm"
    top_k: int = 32


class Sampled(Model):
    name: Literal["sampled"] = "sampled"
    clip: float = 0.2


class Teacher(Model):
    model: str
    device: str | None = None


class Config(Model):
    name: str = "run"
    output_dir: Path = Path("runs")
    verbose: bool = False
    rollout: Rollout = Rollout()
    lora: Lora | None = None
    loss: Annotated[Lsm | Sampled, Field(discriminator="name")] = Lsm()
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    arguments: dict[str, Any] = Field(default_factory=dict)
    api_key: str | None = None
    hidden: SecretStr | None = None

    @model_validator(mode="after")
    def _groups(self) -> Config:
        if self.rollout.group == 13:
            raise ValueError("13 is not a group")
        if self.rollout.group * self.rollout.temperature > 100:
            raise ValueError(
                f"rollout.group ({self.rollout.group}) times rollout.temperature is above 100"
            )
        return self


PREFIX = "LSM_TEST__"


def load(
    *overrides: str, flags: dict[str, Any] | None = None, files: tuple[Path, ...] = ()
) -> Resolved[Config]:
    return load_settings(Config, files, PREFIX, overrides, flags)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text('name = "file"\n[rollout]\ntop_p = 0.5\ngroup = 4\n')
    return path


def refused(*overrides: str, **arguments: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(*overrides, **arguments)
    assert caught.value.exit_code == EXIT_CONFIGURATION
    return caught.value


def test_each_layer_wins_over_the_one_before(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [load().settings.rollout.top_p]
    seen.append(load(files=(file,)).settings.rollout.top_p)
    second = tmp_path / "b.toml"
    second.write_text("[rollout]\ntop_p = 0.6\n")
    seen.append(load(files=(file, second)).settings.rollout.top_p)
    monkeypatch.setenv("LSM_TEST__ROLLOUT__TOP_P", "0.7")
    seen.append(load(files=(file, second)).settings.rollout.top_p)
    sets = ("rollout.top_p=0.1", "rollout.top_p=0.8")
    seen.append(load(*sets, files=(file, second)).settings.rollout.top_p)
    resolved = load(*sets, files=(file, second), flags={"rollout.top_p": 1.0, "name": None})
    seen.append(resolved.settings.rollout.top_p)
    assert seen == [0.9, 0.5, 0.6, 0.7, 0.8, 1.0]
    assert resolved.settings.rollout.group == 4
    assert resolved.settings.name == "file"


def test_origins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_TEST__NAME", "env")
    origins = load("verbose=true", files=(file,), flags={"output_dir": Path("x")}).origins
    assert origins == {
        "name": "env LSM_TEST__NAME",
        "output_dir": "flag --output-dir",
        "verbose": "flag --set",
        "rollout.top_p": f"file {file}",
        "rollout.temperature": "default",
        "rollout.group": f"file {file}",
        "rollout.stop": "default",
        "lora": "default",
        "loss.name": "default",
        "loss.top_k": "default",
        "teachers": "default",
        "arguments": "default",
        "api_key": "default",
        "hidden": "default",
    }


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=3", "name", "3"),
        ("name=true", "name", "true"),
        ("name=a=b", "name", "a=b"),
        ('name="quoted # text"', "name", "quoted # text"),
        ("name=bare # text", "name", "bare # text"),
        ("name=", "name", ""),
        ("output_dir=/tmp/x", "output_dir", Path("/tmp/x")),
        ("rollout.group=3", "rollout.group", 3),
        ("rollout.temperature=2", "rollout.temperature", 2.0),
        ('rollout.stop=["a", "b"]', "rollout.stop", ("a", "b")),
        ("lora.modules=all", "lora.modules", "all"),
        ('lora.modules=["q"]', "lora.modules", ("q",)),
        ("lora={rank = 3}", "lora.rank", 3),
        ("loss.name=sampled", "loss.clip", 0.2),
        ("teachers.a.model=7", "teachers.a.model", "7"),
        ('teachers."a.b".model=x', "teachers.a.b.model", "x"),
        ("arguments.x.y=1", "arguments.x.y", 1),
    ],
)
def test_values_given_as_text(override: str, key: str, value: Any) -> None:
    node: Any = load(override).settings
    parts = ["teachers", "a.b", "model"] if "a.b" in key else key.split(".")
    for part in parts:
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert node == value
    assert type(node) is type(value)


def test_environment_reaches_nested_keys_and_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_TEST__LORA__RANK", "5")
    monkeypatch.setenv("LSM_TEST__TEACHERS__A__MODEL", "m")
    monkeypatch.setenv("LSM_OTHER__X", "not ours")
    settings = load().settings
    assert settings.lora is not None
    assert settings.lora.rank == 5
    assert settings.teachers["a"].model == "m"


def test_an_empty_table_turns_a_part_on(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[lora]\n")
    assert load(files=(path,)).settings.lora == Lora()


def test_lists_are_replaced_and_tables_merged(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[rollout]\nstop = ["a"]\n[teachers.a]\nmodel = "x"\n')
    settings = load('rollout.stop=["b"]', "teachers.b.model=y", files=(path,)).settings
    assert settings.rollout.stop == ("b",)
    assert set(settings.teachers) == {"a", "b"}


@pytest.mark.parametrize(
    ("override", "where", "fix"),
    [
        ("rollout.topp=1", "rollout.topp (flag --set)", "rollout.top_p"),
        ("rolout.top_p=1", "rolout (flag --set)", "rollout"),
        ("temperature=1", "temperature (flag --set)", "rollout.temperature"),
        ("loss.topk=1", "loss.topk (flag --set)", "loss.top_k"),
        ('loss={name="lsm", clip=1}', "loss.clip (flag --set)", "loss."),
        ("teachers.a.modle=1", "teachers.a.modle (flag --set)", "model"),
        ("zzzz=1", "zzzz (flag --set)", "known keys are"),
        ("rollout.top_p.x=1", "rollout.top_p.x (flag --set)", "rollout.top_p"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(override: str, where: str, fix: str) -> None:
    error = refused(override)
    assert error.reason == "UNKNOWN_SETTING"
    assert error.where == where
    assert fix in error.fix


@pytest.mark.parametrize(
    "name", ["LSM_TEST__ROLLOUT__TOPP", "LSM_TEST_NAME", "LSM_TEST__", "LSM_TEST__NAME__"]
)
def test_unknown_variables(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    error = refused()
    assert error.where == f"env {name}"
    assert "LSM_TEST__KEY" in error.fix


def test_unknown_keys_in_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[rollout]\ntop_p = 0.5\ntempurature = 1\n")
    error = refused(files=(path,))
    assert error.where == f"rollout.tempurature (file {path})"
    assert "rollout.temperature" in error.fix


def test_values_that_are_refused_come_with_key_value_origin_and_reason(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSM_TEST__VERBOSE", "maybe")
    file.write_text("[rollout]\ngroup = 1.5\n")
    error = refused("rollout.top_p=2", files=(file,))
    assert "rollout.top_p = 2 (flag --set): Input should be less than or equal to 1" in error.what
    assert 'verbose = "maybe" (env LSM_TEST__VERBOSE): ' in error.what
    assert f"rollout.group = 1.5 (file {file}): " in error.what
    assert "\n" not in str(error)


def test_what_is_missing_and_what_a_validator_refuses() -> None:
    assert "teachers.a.model is required" in refused("teachers.a.device=cpu").what
    assert "13 is not a group" in refused("rollout.group=13").what
    assert "loss.name is required" in refused("loss.clip=1").what
    other = refused("loss.name=other").what
    assert "loss (flag --set)" in other
    assert "'lsm', 'sampled'" in other


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        (("loss.clip=1",), "the default loss.name"),
        (("loss.name=lsm", "loss.clip=1"), 'loss.name = "lsm"'),
        (('loss={name="lsm", clip=1}',), 'loss.name = "lsm"'),
    ],
)
def test_a_key_of_another_kind_is_not_suggested_to_itself(
    overrides: tuple[str, ...], chosen: str
) -> None:
    class Sampling(Model):
        loss: Annotated[Lsm | Sampled, Field(discriminator="name")] = Lsm()

        @field_validator("loss", mode="before")
        @classmethod
        def _lsm_unless_named(cls, value: Any) -> Any:
            return {"name": "lsm", **value} if isinstance(value, dict) else value

    with pytest.raises(ConfigurationError) as caught:
        load_settings(Sampling, overrides=overrides)
    error = caught.value
    assert error.what == f'is a setting of loss.name = "sampled", and not of {chosen}'
    assert (error.where, error.reason) == ("loss.clip (flag --set)", "UNKNOWN_SETTING")
    assert error.fix == 'set loss.name = "sampled", or leave loss.clip out'


def test_what_several_keys_are_refused_for_names_the_origin_of_each(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("[rollout]\ngroup = 40\n")
    monkeypatch.setenv("LSM_TEST__ROLLOUT__TEMPERATURE", "3")
    error = refused(files=(file,))
    assert error.what == (
        "rollout.group (40) times rollout.temperature is above 100 "
        f"(rollout.group: file {file}, rollout.temperature: env LSM_TEST__ROLLOUT__TEMPERATURE)"
    )
    assert "set rollout.group or rollout.temperature in a file" in error.fix
    error = refused("rollout.group=200")
    assert "(rollout.group: flag --set, rollout.temperature: " in error.what
    monkeypatch.delenv("LSM_TEST__ROLLOUT__TEMPERATURE")
    assert "rollout.temperature: default)" in refused("rollout.group=200").what


@pytest.mark.parametrize("override", ["rollout.top_p", "=1", "a b=1", "rollout..top_p=1", "[x]=1"])
def test_overrides_that_are_no_pair(override: str) -> None:
    assert refused(override).where == "--set"


def test_a_key_inside_something_that_is_no_table(file: Path) -> None:
    file.write_text('rollout = "x"\n')
    error = refused("rollout.top_p=1", files=(file,))
    assert "rollout is not a table" in error.what
    assert str(file) in error.what


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert refused(files=(missing,)).where == str(missing)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    assert "line 1" in refused(files=(broken,)).what
    broken.write_bytes(b"\xff\xfe")
    assert "not TOML" in refused(files=(broken,)).what


def test_describe_has_a_line_for_every_key(file: Path) -> None:
    resolved = load("api_key=hush", "hidden=hush", 'teachers."a.b".model=m', files=(file,))
    lines = describe(resolved).splitlines()
    assert f'name = "file" (file {file})' in lines
    assert "rollout.top_p = 0.5 (file " in "\n".join(lines)
    assert "rollout.temperature = 1.0 (default)" in lines
    assert "lora = none (default)" in lines
    assert "api_key = *** (flag --set)" in lines
    assert "hidden = *** (flag --set)" in lines
    assert 'teachers."a.b".model = "m" (flag --set)' in lines
    assert len(lines) == len(resolved.origins)
    assert "hush" not in "\n".join(lines)


def test_secrets_stay_out_of_refusals() -> None:
    class Login(Model):
        password: int = 0
        max_new_tokens: int = 0

    with pytest.raises(ConfigurationError) as caught:
        load_settings(Login, overrides=["password=hush", "max_new_tokens=shown"])
    assert "hush" not in str(caught.value)
    assert "shown" in str(caught.value)


def test_written_settings_give_themselves_again(tmp_path: Path) -> None:
    resolved = load(
        "name=x",
        'rollout.stop=["a"]',
        "lora.rank=3",
        "loss.name=sampled",
        'teachers."a.b".model=m',
        "arguments.x=[1, 2.5]",
        "api_key=hush",
    )
    text = to_toml(resolved.settings)
    assert "hush" not in text
    assert text.startswith("# Left out, secret: api_key\n")
    path = tmp_path / "config.toml"
    path.write_text(text)
    again = load_settings(Config, [path])
    assert again.settings == resolved.settings.model_copy(update={"api_key": None})
    assert again.origins["rollout.top_p"] == f"file {path}"


def test_without_a_prefix_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_TEST__NAME", "env")
    assert load_settings(Config).settings.name == "run"

"""The settings of a run, whoever starts it: the command line or a Python program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings import from_environment_only, load_settings
from teacher_proto.program.settings_show import Resolved

from student_trainer.recipes import config_files
from student_trainer.settings.dotted import importable_from
from student_trainer.settings.train import TrainConfig, section_of

ENV_PREFIX = "LSM_TRAINER"


def resolve_config(
    configs: Sequence[str | PathLike[str]] = (),
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Resolved[TrainConfig]:
    """The settings of files, the environment and ``--set``, later ones first.

    Args:
        configs: TOML files or ``recipe:NAME``, read from left to right.
        overrides: ``key=value``.
        values: nested as in TOML, read like a last file.

    Raises:
        ConfigurationError: names the key, where its value came from and what is wrong.
    """
    files = config_files([fspath(path) for path in configs])
    with importable_from(file.parent for file in reversed(files)):
        resolved = load_settings(TrainConfig, files, ENV_PREFIX, overrides, values=values)
    for name in resolved.settings.named_teachers:
        section = section_of(resolved.settings, name)
        from_environment_only(resolved, f"{section}.token", instead=f"{section}.token_file")
    return resolved


def config_of(given: TrainConfig | Mapping[str, Any] | str | PathLike[str]) -> TrainConfig:
    """The settings of a configuration, of its values nested as in TOML, or of a TOML file or
    ``recipe:NAME``. Environment variables override the last three.

    Raises:
        ConfigurationError: as ``resolve_config``; or it is none of these.
    """
    if isinstance(given, TrainConfig):
        return given
    if isinstance(given, Mapping):
        _check_keys(given, "")
        return resolve_config(values=given).settings
    if isinstance(given, str | PathLike):
        return resolve_config([given]).settings
    raise ConfigurationError(
        f"a {type(given).__name__} is no configuration",
        where="config",
        fix="give a TrainConfig, a dict of its values, or the path of a TOML file",
    )


def _check_keys(values: Mapping[Any, Any], section: str) -> None:
    """Raises ConfigurationError for a key, at any depth, that is no text."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigurationError(
                f"the key {key!r} is a {type(key).__name__}, and no text",
                where=section or "config",
                fix="name settings as in TOML",
            )
        if isinstance(value, Mapping):
            _check_keys(value, f"{section}.{key}".removeprefix("."))

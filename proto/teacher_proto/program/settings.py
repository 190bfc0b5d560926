"""Layered settings of both programs: flag > --set > environment > files > default.

A settings model is a pydantic model, best with ``extra="forbid"``. Keys are
dotted as in TOML (``rollout.top_p``). An environment variable's name is the
prefix and the key's parts in upper case, joined by two underscores
(``LSM_TRAINER__ROLLOUT__TOP_P``). A value given as text is read as a TOML value
where the key takes anything but text; text needs no quotes.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_keys import (
    Key,
    annotations_at,
    dotted,
    first_unknown,
    holds_only_text,
    kinds_with,
    may_be_of_ones_own,
    mentioned,
    nearest,
    parse_key,
)
from teacher_proto.program.settings_show import Resolved, leaves, show

M = TypeVar("M", bound=BaseModel)
DEFAULT = "default"


def load_settings(
    model: type[M],
    files: Sequence[Path] = (),
    env_prefix: str = "",
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    flag_names: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Resolved[M]:
    """Merges every layer and validates the result once.

    Args:
        files: TOML files; a later one wins. Tables merge, everything else is
            replaced.
        env_prefix: such as ``LSM_TRAINER__``; empty reads no environment.
        overrides: ``key=value`` of ``--set``; a later one wins.
        flags: dotted key to value; None stands for a flag that was not given.
        flag_names: dotted key to its flag, where that is not called like the key.
        values: nested as in TOML, read like a last file.

    Raises ConfigurationError for a file that cannot be read, for an unknown key
    (with the nearest known one) and for values the model refuses, each with its
    key, origin and reason.
    """
    layers = _Layers(model)
    for file in files:
        layers.put((), _read(Path(file)), f"file {file}")
    layers.put((), values or {}, "the given values")
    if env_prefix:
        for key, name, raw in _environment(model, env_prefix.rstrip("_")):
            layers.put(key, layers.value(key, raw), f"env {name}")
    for override in overrides:
        text, equals, raw = override.partition("=")
        key_or_none = parse_key(text)
        if not equals or key_or_none is None:
            raise ConfigurationError(
                f"{override!r} is not key=value", where="--set", fix="write --set rollout.top_p=0.9"
            )
        layers.put(key_or_none, layers.value(key_or_none, raw.strip()), "flag --set")
    for text, value in (flags or {}).items():
        key_or_none = parse_key(text)
        assert key_or_none is not None, f"flag key {text!r} is not a dotted key"
        if value is not None:
            name = "--" + "-".join(key_or_none).replace("_", "-")
            layers.put(key_or_none, value, f"flag {(flag_names or {}).get(text, name)}")
    return layers.resolve()


def from_environment_only(resolved: Resolved[Any], key: str, *, instead: str) -> None:
    """Refuses a secret from a flag or a file: others can read those.

    Raises:
        ConfigurationError: names ``instead``, the setting of a file that is checked.
    """
    origin = resolved.origins[key]
    if origin != DEFAULT and not origin.startswith("env "):
        raise ConfigurationError(
            f"a secret is given by {origin}, where others may read it",
            where=key,
            fix=f"give it in the environment, or in the file that {instead} names",
            reason="SECRET_EXPOSED",
        )


class _Layers(Generic[M]):
    """Nested values merged so far, and the origin of each leaf."""

    def __init__(self, model: type[M]) -> None:
        self.model = model
        self.values: dict[str, Any] = {}
        self.origins: dict[Key, str] = {}

    def value(self, key: Key, raw: str) -> Any:
        """What a text given for ``key`` stands for."""
        try:
            literal = tomllib.loads(f"value = {raw}")["value"] if "\n" not in raw else raw
        except tomllib.TOMLDecodeError:
            return raw
        if holds_only_text(annotations_at(self.model, key)) and not isinstance(literal, str):
            return raw
        return literal

    def put(self, key: Key, value: Any, origin: str) -> None:
        if isinstance(value, Mapping):
            if key and not isinstance(self._get(key), dict):
                self._set(key, {}, origin)
            for name, inner in value.items():
                self.put((*key, name), inner, origin)
        else:
            self._set(key, value, origin)

    def _get(self, key: Key) -> Any:
        node: Any = self.values
        for part in key:
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _set(self, key: Key, value: Any, origin: str) -> None:
        node = self.values
        for depth, part in enumerate(key[:-1], start=1):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigurationError(
                    f"{dotted(key[:depth])} is not a table "
                    f"({self.origins.get(key[:depth], origin)})",
                    where=f"{dotted(key)} ({origin})",
                    fix=f"give {dotted(key[:depth])} only as a table",
                )
        for old in [old for old in self.origins if old[: len(key)] == key]:
            del self.origins[old]
        node[key[-1]] = value
        self.origins[key] = origin

    def origin(self, key: Key) -> str:
        """Where the key, or else the nearest thing that holds it or is in it, came from."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.origins:
                return self.origins[key[:end]]
        inside = [origin for old, origin in self.origins.items() if old[: len(key)] == key]
        return inside[0] if inside and key else DEFAULT

    def resolve(self) -> Resolved[M]:
        try:
            unknown = first_unknown(self.model, self.values)
        except ConfigurationError as error:
            raise self._with_origin(error) from None
        if unknown:
            raise self.unknown(unknown)
        try:
            settings = self.model.model_validate(self.values)
        except ValidationError as failure:
            raise self._refusal(failure) from None
        origins = {dotted(key): self.origins.get(key, DEFAULT) for key, _ in leaves(settings)}
        return Resolved(settings, origins)

    def _with_origin(self, error: ConfigurationError) -> ConfigurationError:
        """The error about a key, which also says where that came from."""
        key = parse_key(error.where) or ()
        where = f"{error.where} ({self.origin(key)})"
        return ConfigurationError(error.what, where=where, fix=error.fix, reason=error.reason)

    def unknown(self, key: Key) -> ConfigurationError:
        what, fix = "is not a setting", nearest(self.model, key, self.values)
        tag, owners = kinds_with(self.model, key)
        if tag:
            # Known, but to another kind of the section that it is in.
            name, kinds = dotted((*key[:-1], tag)), " or ".join(f'"{kind}"' for kind in owners)
            chosen = self._get((*key[:-1], tag))
            here = f"{name} = {show((tag,), chosen)}" if chosen else f"the default {name}"
            what = f"is a setting of {name} = {kinds}, and not of {here}"
            fix = f"set {name} = {kinds}, or leave {dotted(key)} out"
        return ConfigurationError(
            what,
            where=f"{dotted(key)} ({self.origin(key)})",
            fix=fix,
            reason="UNKNOWN_SETTING",
        )

    def _refusal(self, failure: ValidationError) -> ConfigurationError:
        problems: list[str] = []
        named: list[str] = []
        for error in failure.errors(include_url=False):
            key = self._key_of(error["loc"])
            cause = error.get("ctx", {}).get("error")
            if isinstance(cause, ConfigurationError) and cause.where:
                if key and cause.where == f"{key[0]}.kind":
                    cause.where = dotted((*key, "kind"))
                return self._with_origin(cause)
            if error["type"] == "extra_forbidden":
                return self.unknown(key)
            reason = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            name = dotted(key) or "settings"
            if error["type"] == "union_tag_not_found":
                tag = error["ctx"]["discriminator"].strip("'")
                problems.append(f"{dotted((*key, tag))} is required and not set")
            elif error["type"] == "missing":
                problems.append(f"{name} is required and not set")
            elif isinstance(self._get(key), dict) and error["type"] != "value_error":
                problems.append(f"{name} ({self.origin(key)}): {reason}")
            elif isinstance(self._get(key), dict):
                # Of several keys together: each has an origin of its own.
                keys = mentioned(self.model, key, reason, self.values)
                origins = ", ".join(f"{dotted(one)}: {self.origin(one)}" for one in keys)
                named += [dotted(one) for one in keys]
                before = f"{dotted(key)}: " if key else ""
                problems.append(f"{before}{reason} ({origins or self.origin(key)})")
            else:
                value = show(key, error["input"])
                problems.append(f"{name} = {value} ({self.origin(key)}): {reason}")
        first = self._key_of(failure.errors()[0]["loc"])
        return ConfigurationError(
            "; ".join(problems),
            fix=f"set {' or '.join(named) or dotted(first) or 'the keys named'} in a file, in the "
            "environment or with --set key=value",
        )

    def _key_of(self, loc: tuple[int | str, ...]) -> Key:
        """pydantic's location without the tags of unions."""
        key: list[str] = []
        node: Any = self.values
        for index, part in enumerate(loc):
            if isinstance(node, dict) and (
                part in node or annotations_at(self.model, (*key, str(part)), self.values)
            ):
                key.append(str(part))
                node = node.get(part)
            elif isinstance(node, list | tuple) and isinstance(part, int):
                key.append(str(part))
                node = node[part]
            elif index == len(loc) - 1 and isinstance(node, dict):
                key.append(str(part))
        return tuple(key)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as failure:
        raise ConfigurationError(
            f"cannot be read: {failure.strerror}", where=str(file), fix="check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise ConfigurationError(f"is not TOML: {failure}", where=str(file)) from None


def _environment(model: type[BaseModel], root: str) -> Iterator[tuple[Key, str, str]]:
    for name, raw in sorted(os.environ.items()):
        if not name.startswith(f"{root}_"):
            continue
        key = tuple(name.removeprefix(root).lstrip("_").lower().split("__"))
        known = all(key) and (annotations_at(model, key) or may_be_of_ones_own(model, key))
        if not name.startswith(f"{root}__") or not known:
            raise ConfigurationError(
                "is not a setting",
                where=f"env {name}",
                fix=f"names are {root}__KEY__KEY; {nearest(model, key)}",
                reason="UNKNOWN_SETTING",
            )
        yield key, name, raw

"""The settings of a program, from its pydantic model: keys, types, defaults, meanings."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from teacher_proto.program.settings_types import Kinds, annotation_of

from tools.reference.markdown import code, section, table

MIB = 1 << 20
PLAIN = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    SecretStr: "secret",
}
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


@dataclass(frozen=True)
class Setting:
    """One key; ``kinds`` names those of its section that have it, none when all do."""

    key: str
    type: str
    default: str
    meaning: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A table of the settings file and what stands right in it."""

    name: str
    intro: str
    settings: tuple[Setting, ...]


def sections(model: type[BaseModel]) -> list[Section]:
    """Every section of a settings model, its own keys first.

    Raises:
        ValueError: a key or a section has no meaning.
    """
    return list(_sections((model,), "", _intro(model)))


def render(found: Sequence[Section], flags: Mapping[str, str]) -> list[str]:
    """The sections as Markdown; ``flags`` gives the flag of a key that has one."""
    return [_render(each, flags) for each in found]


def _render(each: Section, flags: Mapping[str, str]) -> str:
    rows = []
    for setting in each.settings:
        meaning = setting.meaning
        if setting.kinds:
            meaning += f" Only for {', '.join(map(code, setting.kinds))}."
        if setting.key in flags:
            meaning += f" Flag {code(flags[setting.key])}."
        rows.append((code(setting.key), setting.type, setting.default, meaning))
    heading = code(each.name) if each.name else "Top level"
    return section(heading, each.intro, table(("key", "type", "default", "meaning"), rows))


def _sections(
    models: Sequence[type[BaseModel]], name: str, intro: str, mark: Kinds | None = None
) -> Iterator[Section]:
    """The section of ``models`` (several are alternatives) and those inside it. ``mark``: of the
    section that comes in kinds."""
    fields = {key: field for model in models for key, field in model.model_fields.items()}
    inner = {
        key: found for key, field in fields.items() if (found := _models(annotation_of(field)))
    }
    own = [_kinds(models, name, mark)] if len(models) > 1 else []
    own += [
        s for key in fields if key not in {"kind", *inner} for s in _settings(models, name, key)
    ]
    if own:
        yield Section(name, intro, tuple(own))
    for key, found in inner.items():
        field = fields[key]
        path = _join(name, key) + (".NAME" if _by_name(field.annotation) else "")
        text = field.description or _intro(_parent(found))
        yield from _sections(found, path, text, _mark(annotation_of(field)))


def _by_name(annotation: Any) -> bool:
    """Whether a section stands under a name of the user's choice, if it is there."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_by_name(one) for one in get_args(annotation))
    return get_origin(annotation) is dict


def _settings(models: Sequence[type[BaseModel]], name: str, key: str) -> Iterator[Setting]:
    """A key as the alternatives have it: once for all that agree on it."""
    found: dict[Setting, list[str]] = {}
    for model in models:
        if key in model.model_fields:
            setting = _setting(_join(name, key), model.model_fields[key])
            found.setdefault(setting, []).append(_kind(model))
    for setting, kinds in found.items():
        every = len(kinds) == len(models)
        yield Setting(
            setting.key,
            setting.type,
            setting.default,
            setting.meaning,
            () if every else tuple(kinds),
        )


def _kinds(models: Sequence[type[BaseModel]], name: str, mark: Kinds | None) -> Setting:
    """The key that chooses among alternatives; the first is what it is by default, where the mark
    does not say otherwise."""
    kinds = {_kind(model): _intro(model) for model in models}
    meaning = " ".join(f"{code(kind)}: {intro}" for kind, intro in kinds.items())
    needed = mark is not None and mark.default is None
    default = "required" if needed else code(json.dumps(_kind(models[0])))
    return Setting(_join(name, "kind"), _choice(kinds), default, meaning)


def _setting(key: str, field: FieldInfo) -> Setting:
    if not field.description:
        raise ValueError(f"{key} has no description")
    text = _type(field.annotation, field.metadata)
    return Setting(key, text, _default(key, field), field.description)


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = [m for a in arguments[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])]
        return _type(arguments[0], [*metadata, *more])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a, metadata) for a in arguments if a is not type(None))
    if origin is Literal:
        return _choice(arguments)
    if origin is tuple:
        size = "" if arguments[-1] is Ellipsis else f"{len(arguments)} of "
        return f"list of {size}{_type(arguments[0])}"
    if origin is dict:
        return "table"
    return PLAIN[annotation] + _bounds(metadata)


def _choice(values: Iterable[object]) -> str:
    *others, last = (code(json.dumps(value)) for value in values)
    return f"{', '.join(others)} or {last}" if others else last


def _bounds(metadata: Sequence[Any]) -> str:
    found = [
        f"{sign} {getattr(bound, name)}"
        for kind, (name, sign) in BOUNDS.items()
        for bound in metadata
        if isinstance(bound, kind)
    ]
    return f", {' and '.join(found)}" if found else ""


def _default(key: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        value = list(value)
    text = code(json.dumps(str(value) if isinstance(value, Path) else value))
    in_mib = key.endswith("_bytes") and isinstance(value, int) and value and value % MIB == 0
    return f"{text} ({value // MIB} MiB)" if in_mib else text


def _models(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The settings models in an annotation: of a section, its alternatives, or a table's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        for mark in arguments[1:]:
            if isinstance(mark, Kinds):
                return tuple(mark.named.values())
        arguments = arguments[:1]
    return tuple(model for argument in arguments for model in _models(argument))


def _mark(annotation: Any) -> Kinds | None:
    """The mark of a section, or of a list of them, that comes in kinds."""
    if isinstance(annotation, Kinds):
        return annotation
    return next((mark for inner in get_args(annotation) if (mark := _mark(inner))), None)


def _parent(models: Sequence[type[BaseModel]]) -> type[BaseModel]:
    """The nearest class that all of them extend."""
    return next(base for base in models[0].__mro__ if all(issubclass(m, base) for m in models))


def _intro(model: type[BaseModel]) -> str:
    if not model.__doc__:
        raise ValueError(f"{model.__name__} has no docstring")
    return inspect.cleandoc(model.__doc__).partition("\n\n")[0].replace("``", "`")


def _kind(model: type[BaseModel]) -> str:
    field = model.model_fields.get("kind")
    return str(field.default) if field else ""


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key

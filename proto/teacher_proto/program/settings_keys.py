"""What keys a settings model knows, and how a key is written."""

from __future__ import annotations

import difflib
import enum
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_types import Kinds, annotation_of

Key = tuple[str, ...]
SECRET = re.compile(r"(^|_)token$|password|passphrase|secret|api_?key|credential", re.IGNORECASE)
# A file's name is no secret, whatever the file holds.
PATH = re.compile(r"_(file|path|dir)$", re.IGNORECASE)
BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: Key) -> str:
    """The key as TOML writes it: parts that need quotes have them."""
    return ".".join(part if BARE.fullmatch(part) else f'"{part}"' for part in key)


def parse_key(text: str) -> Key | None:
    """The parts of a dotted TOML key; None when it is not one."""
    if "\n" in text:
        return None
    try:
        node: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return None
    parts = []
    while isinstance(node, dict) and len(node) == 1:
        part, node = next(iter(node.items()))
        parts.append(part)
    return tuple(parts) if node == 0 else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested tables by their dotted keys, in order; an empty table has none."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_secret(key: Key) -> bool:
    """Whether a key's name says that its value must not be shown."""
    return any(SECRET.search(part) and not PATH.search(part) for part in key)


def annotations_at(
    model: type[BaseModel], key: Key, values: Mapping[str, Any] | None = None
) -> list[Any]:
    """Every annotation a key can have; empty when the model does not know the key.

    Args:
        values: nested, of the whole model. Where they name a class of a user's own as the kind
            of a section, its keys are known too.

    Raises:
        ConfigurationError: there is no such class.
    """
    found: list[Any] = [model]
    node: Any = values
    for depth, part in enumerate(key):
        try:
            found = [inner for outer in found for inner in _step(outer, part, node)]
        except ConfigurationError as error:
            # Of one of several sections by name, the mark of its kinds does not know the name.
            where = dotted((*key[:depth], "kind"))
            raise ConfigurationError(
                error.what, where=where, fix=error.fix, reason=error.reason
            ) from error
        node = node.get(part) if isinstance(node, Mapping) else None
    return found


def may_be_of_ones_own(model: type[BaseModel], key: Key) -> bool:
    """Whether the key is in a section whose kind may be a class of a user's own, so that only
    all values together tell whether it is known."""
    return any(
        _kinds_of(annotation) is not None
        for depth in range(1, len(key))
        for annotation in annotations_at(model, key[:depth])
    )


def holds_only_text(annotations: Sequence[Any]) -> bool:
    """Whether a value for these annotations can be nothing but text (or None)."""
    leaves = [leaf for annotation in annotations for leaf in _alternatives(annotation)]
    return bool(leaves) and all(_is_text(leaf) for leaf in leaves)


def first_unknown(model: type[BaseModel], values: Mapping[str, Any]) -> Key | None:
    """The first key in ``values`` (nested) that the model does not know.

    Raises:
        ConfigurationError: as ``annotations_at``.
    """
    return _first_unknown(model, values, values, ())


def _first_unknown(
    model: type[BaseModel], whole: Mapping[str, Any], here: Mapping[str, Any], key: Key
) -> Key | None:
    for name, value in here.items():
        inner = (*key, name)
        if not annotations_at(model, inner, whole):
            return inner
        if isinstance(value, Mapping):
            found = _first_unknown(model, whole, value, inner)
            if found:
                return found
    return None


def nearest(model: type[BaseModel], key: Key, values: Mapping[str, Any] | None = None) -> str:
    """Advice for a key the model does not know: the closest known one. ``values`` as in
    ``annotations_at``."""
    known = [dotted(path) for path in _known(model)]
    section: Any = values
    for part in key[:-1]:
        section = section.get(part) if isinstance(section, Mapping) else None
    siblings = sorted(
        {
            dotted((*key[:-1], name))
            for annotation in annotations_at(model, key[:-1], values)
            for inner in _models(annotation, section)
            for name in inner.model_fields
        }
    )
    for candidates in (siblings, known):
        close = difflib.get_close_matches(dotted(key), candidates, n=1)
        if close:
            return f"did you mean {close[0]}?"
    last = {path: path.rpartition(".")[2] for path in known}
    close = difflib.get_close_matches(key[-1], sorted(set(last.values())), n=1)
    if close:
        return f"did you mean {next(path for path in known if last[path] == close[0])}?"
    tops = sorted({path.partition(".")[0] for path in known})
    return f"known keys are {', '.join(siblings or tops)}"


def kinds_with(model: type[BaseModel], key: Key) -> tuple[str, list[str]]:
    """Of a key in a section that comes in several kinds: (the field that says which, the
    kinds that have the key); an empty text where the section does not, or none has it."""
    sections = [m for a in annotations_at(model, key[:-1]) for m in _models(a)]
    owners = [m for m in sections if key[-1] in m.model_fields]
    if not owners or len(sections) < 2:
        return "", []
    for name, field in owners[0].model_fields.items():
        tags = [
            get_args(owner.model_fields[name].annotation)
            for owner in owners
            if name in owner.model_fields
            and get_origin(owner.model_fields[name].annotation) is Literal
        ]
        if get_origin(field.annotation) is Literal and all(len(tag) == 1 for tag in tags):
            return name, [str(tag[0]) for tag in tags]
    return "", []


def mentioned(
    model: type[BaseModel], section: Key, text: str, values: Mapping[str, Any] | None = None
) -> list[Key]:
    """The keys that a text about this section names, with the section or without it, in the
    order of the text. ``values`` as in ``annotations_at``."""
    found: dict[Key, None] = {}
    for word in re.findall(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", text):
        parts = tuple(word.split("."))
        for key in ((*section, *parts), parts if len(parts) > 1 else ()):
            annotations = annotations_at(model, key, values) if len(key) > len(section) else []
            if annotations and not any(inner for a in annotations for inner in _models(a)):
                found[key] = None
                break
    return list(found)


def _step(annotation: Any, part: str, values: Any) -> Iterator[Any]:
    for leaf in _alternatives(annotation, values):
        if isinstance(leaf, type) and issubclass(leaf, BaseModel):
            if part in leaf.model_fields:
                yield annotation_of(leaf.model_fields[part])
        elif leaf in (dict, Mapping, Any):
            yield Any
        elif get_origin(leaf) in (dict, Mapping) or _is_abstract_mapping(leaf):
            yield get_args(leaf)[1]


def _is_abstract_mapping(leaf: Any) -> bool:
    origin = get_origin(leaf)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _kinds_of(annotation: Any) -> Kinds | None:
    """The mark of a section that comes in kinds."""
    if get_origin(annotation) is not Annotated:
        return None
    return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Kinds)), None)


def _alternatives(annotation: Any, values: Any = None) -> Iterator[Any]:
    """The members of unions and the kinds of a section, through Annotated, without None.
    ``values`` are those of the section."""
    origin = get_origin(annotation)
    kinds = _kinds_of(annotation)
    if kinds is not None:
        yield from kinds.at(values)
    elif origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _alternatives(member)
    elif annotation is not type(None):
        yield annotation


def _models(annotation: Any, values: Any = None) -> Iterator[type[BaseModel]]:
    for leaf in _alternatives(annotation, values):
        if isinstance(leaf, type) and issubclass(leaf, BaseModel):
            yield leaf


def _is_text(leaf: Any) -> bool:
    if get_origin(leaf) is Literal:
        return all(isinstance(value, str) for value in get_args(leaf))
    if isinstance(leaf, type) and issubclass(leaf, enum.Enum):
        return all(isinstance(member.value, str) for member in leaf)
    return isinstance(leaf, type) and issubclass(leaf, str | Path | SecretStr)


def _known(model: type[BaseModel], key: Key = ()) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        yield (*key, name)
        for inner in _models(annotation_of(field)):
            yield from _known(inner, (*key, name))

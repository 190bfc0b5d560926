"""Settings once every layer is merged, and as text: one line a key, or a TOML file.

Secrets are never written.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, SecretBytes, SecretStr

from teacher_proto.program.settings_keys import Key, dotted, is_secret

M = TypeVar("M", bound=BaseModel)
HIDDEN = "***"


@dataclass(frozen=True)
class Resolved(Generic[M]):
    """Validated settings, and where each leaf came from, by dotted key.

    An origin is ``default``, ``file PATH``, ``env NAME``, ``flag --set`` or
    ``flag --NAME``.
    """

    settings: M
    origins: Mapping[str, str]


def describe(resolved: Resolved[Any]) -> str:
    """One line per key: ``rollout.top_p = 0.9 (file run.toml)``; secrets show as ``***``."""
    return "\n".join(
        f"{dotted(key)} = {show(key, value)} ({resolved.origins[dotted(key)]})"
        for key, value in leaves(resolved.settings)
    )


def to_toml(settings: BaseModel) -> str:
    """A TOML file that gives these settings again.

    Keys that are None are left out: None is only ever a default. Secrets are left
    out too, and a comment at the top names them.
    """
    import tomli_w

    tree: dict[str, Any] = {}
    hidden = []
    for key, value in leaves(settings):
        if _hides(key, value):
            hidden += [dotted(key)] if value is not None else []
        elif value is not None:
            node = tree
            for part in key[:-1]:
                node = node.setdefault(part, {})
            node[key[-1]] = _plain(value)
    header = f"# Left out, secret: {', '.join(hidden)}\n" if hidden else ""
    return header + tomli_w.dumps(tree)


def leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """(key, value) of everything that is not a table; an empty table is a leaf."""
    if isinstance(value, BaseModel):
        items: Mapping[str, Any] = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, Mapping):
        items = value
    else:
        yield key, value
        return
    if not items and key:
        yield key, {}
    for name, inner in items.items():
        yield from leaves(inner, (*key, str(name)))


def show(key: Key, value: Any) -> str:
    """The value as TOML would write it; ``***`` for a secret."""
    if _hides(key, value):
        return HIDDEN if value is not None else "none"
    return "none" if value is None else json.dumps(_plain(value), ensure_ascii=False, default=str)


def _hides(key: Key, value: Any) -> bool:
    return is_secret(key) or isinstance(value, SecretStr | SecretBytes)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            name: _plain(inner)
            for name, inner in ((name, getattr(value, name)) for name in type(value).model_fields)
            if inner is not None
        }
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    return value

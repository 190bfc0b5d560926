"""Where rows come from, and the rows themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from teacher_proto.errors import ConfigurationError


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        name: a file, a folder, or a dataset on the hub.
        key: the setting that names it.
        subset, split, revision: of a dataset on the hub or in a folder.
    """

    name: str
    key: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


# A row, and the place an error names.
PlacedRows = Iterator[tuple[str, Mapping[str, Any]]]


def unreadable(source: Source, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot read {source.name}: {why}", where=source.key, fix="check the path"
    )

"""Which column of a dataset's row holds the prompt and the template's arguments
(``data.columns``)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.errors import ConfigurationError

from student_trainer.settings.data import ColumnSettings

COLUMNS = ("messages", "prompt")


def prompt_column(row: Mapping[str, Any], chosen: str | None, place: str) -> str:
    """The column of the prompt: ``chosen``, or the one of COLUMNS that the row has.

    Raises:
        ConfigurationError: the row does not have it, or has both.
    """
    if chosen is not None:
        return _column(row, chosen, "data.columns.prompt", place)
    found = [name for name in COLUMNS if name in row]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigurationError(
            'a row needs either "messages" or "prompt", and this one has both',
            where=place,
            fix="say which in data.columns.prompt",
        )
    raise _no_column(row, 'either "messages" or "prompt"', COLUMNS, "data.columns.prompt", place)


def _column(row: Mapping[str, Any], name: str, key: str, place: str) -> str:
    if name not in row:
        raise _no_column(row, f"the column {name!r}", (name,), key, place)
    return name


def _no_column(
    row: Mapping[str, Any], needed: str, names: Sequence[str], key: str, place: str
) -> ConfigurationError:
    there = sorted(row)
    lower = {name.lower(): name for name in there}
    close = [
        match for name in names for match in difflib.get_close_matches(name, lower, n=1, cutoff=0.5)
    ]
    advice = f"did you mean {lower[close[0]]!r}? " if close else ""
    return ConfigurationError(
        f"a row needs {needed}; its columns are {', '.join(map(repr, there)) or 'none'}",
        where=place,
        fix=f"{advice}name the column in {key}",
    )


def own_arguments(row: Mapping[str, Any], columns: ColumnSettings, place: str) -> Mapping[str, Any]:
    """The row's own keyword arguments of the chat template. Text in such a column is JSON.

    Raises:
        ConfigurationError: a column is missing, or is not what it should be.
    """
    own: dict[str, Any] = {}
    for name, key in (("template_arguments", ""), ("tools", "tools")):
        column = getattr(columns, name)
        if column is None:
            continue
        value = row[_column(row, column, f"data.columns.{name}", place)]
        try:
            value = parse_json(value) if isinstance(value, str) else value
        except StrictJsonError as error:
            raise ConfigurationError(
                f"column {column!r} is not JSON: {error}", where=place
            ) from error
        wanted = list if key else dict
        if not isinstance(value, wanted):
            raise ConfigurationError(
                f"column {column!r} holds no {'list' if key else 'object'}", where=place
            )
        own |= {key: value} if key else value
    return own

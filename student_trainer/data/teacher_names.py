"""Which teacher scores a row (``data.columns.teacher``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.data.columns import Columns

SHOWN = 5  # places of a name that an error gives


class TeacherNames:
    """The names of a dataset's rows, looked up among the teachers of the run. Rows that name
    another are collected, so that one error names them all.

    Args:
        names: of the teachers.
        default: of rows that name none; None where every row has to name one.
        key: the setting that names the dataset.
    """

    def __init__(self, names: Sequence[str], default: str | None, key: str) -> None:
        self._names = names
        self._default = default
        self._key = key
        self._unknown: dict[str | None, list[str]] = {}

    def of(self, row: Mapping[str, Any], place: str, columns: Columns) -> str:
        """The name of the row's teacher; some name where the row is one of those collected.

        Raises:
            ConfigurationError: the column holds no text.
        """
        value = columns.optional(row, "teacher")
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(
                f"column {columns.settings.teacher!r} holds {value!r:.40}, and a teacher's name is "
                "a text",
                where=place,
                fix=f"write one of {', '.join(self._names)}",
            )
        name = value or self._default
        if name in self._names:
            return str(name)
        self._unknown.setdefault(name, []).append(place)
        return self._names[0]

    def finish(self) -> None:
        """Once every row was seen.

        Raises:
            ConfigurationError: rows name no teacher of the run, or none at all.
        """
        if not self._unknown:
            return
        told = [
            f"{len(places)} rows name {'no teacher' if name is None else repr(name)} "
            f"({', '.join(places[:SHOWN])}{', ...' if len(places) > SHOWN else ''})"
            for name, places in list(self._unknown.items())[:SHOWN]
        ]
        if len(self._unknown) > SHOWN:
            told.append(f"and {len(self._unknown) - SHOWN} more names")
        none = None in self._unknown
        raise ConfigurationError(
            f"{'; '.join(told)}; the teachers are {', '.join(self._names)}",
            where=self._key,
            fix="correct the rows or add the teachers as [teachers.NAME]"
            + (", and set data.teacher for rows that name none" if none else ""),
        )

"""Which columns of a row hold the prompt, its system prompt and the template's arguments
(``data.columns``), and which are there and not used."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.errors import ConfigurationError

from student_trainer.settings.data import ColumnSettings

COLUMNS = ("messages", "prompt", "conversations")
USER_OR_PROMPT = (
    "data.columns.user if it holds the user's text, or in data.columns.prompt if it holds a "
    "conversation, or a text that is used without the chat template"
)
# Columns that a row may lack, or hold null in.
OPTIONAL = ("system", "template_arguments", "tools", "teacher", "teacher_prompt")


class Columns:
    """The columns of one dataset's rows: which are asked for, and which were seen.

    Attributes:
        ignored: sentences on what nothing reads of a row, and of how many rows: TEXT, SYSTEM.
    """

    def __init__(self, settings: ColumnSettings, key: str, *, of_task: bool = False) -> None:
        """
        Args:
            key: the setting that names the dataset.
            of_task: whether the rows are a task's: they may lack any column, and the task reads
                the others.
        """
        self.settings = settings
        self._of_task = of_task
        self.key = key
        self.ignored: Counter[str] = Counter()
        self._used: set[str] = set()
        self._seen: dict[str, None] = {}  # in order

    def prompt(self, row: Mapping[str, Any], place: str) -> str:
        """The column of the prompt: the one chosen, or the one of COLUMNS that the row has.

        Raises:
            ConfigurationError: the row does not have it, or has several.
        """
        self._seen |= dict.fromkeys(row)
        for key in ("user", "prompt"):
            chosen = getattr(self.settings, key)
            if chosen is not None:
                if row.get(chosen) is None:
                    needed = f"the column {chosen!r}"
                    raise _no_column(row, needed, (chosen,), f"data.columns.{key}", place)
                self._used.add(chosen)
                return str(chosen)
        found = [name for name in COLUMNS if row.get(name) is not None]
        if len(found) == 1:
            self._used.add(found[0])
            return found[0]
        if found:
            several = "both" if len(found) == 2 else "all three"
            raise ConfigurationError(
                f'a row needs either "messages" or "prompt" or "conversations", and this one has '
                f"{several if len(found) == 3 else f'{several} {found[0]} and {found[1]}'}",
                where=place,
                fix="say which in data.columns.prompt",
            )
        needed = 'either "messages" or "prompt" or "conversations"'
        lower = [name.lower() for name in row]
        key = USER_OR_PROMPT
        if difflib.get_close_matches("prompt", lower, cutoff=0.8):
            key = "data.columns.prompt, or in data.columns.user if it holds the user's text"
        raise _no_column(row, needed, COLUMNS, key, place)

    def optional(self, row: Mapping[str, Any], name: str) -> Any:
        """The value in the column that ``data.columns.NAME`` names; None where there is none."""
        column = getattr(self.settings, name)
        return None if column is None else self.value(row, column)

    def value(self, row: Mapping[str, Any], column: str) -> Any:
        """The value in a column; None where the row does not have it."""
        if column not in row:
            return None
        self._used.add(column)
        return row[column]

    def finish(self) -> list[str]:
        """Once every row was seen: one sentence on the columns that nothing uses, and one on
        each thing in the others that nothing reads.

        Raises:
            ConfigurationError: a setting names a column that no row has.
        """
        for name in () if self._of_task else OPTIONAL:
            column = getattr(self.settings, name)
            if column is not None and column not in self._seen and self._seen:
                raise ConfigurationError(
                    f"no row has the column {column!r}; their columns are {_listed(self._seen)}",
                    where=self.key,
                    fix=f"{_nearest(self._seen, (column,))}name the column in data.columns.{name}",
                )
        notes = [f"{self.key}: {many} {what}" for what, many in self.ignored.items()]
        unused = [name for name in self._seen if name not in self._used]
        if not unused or self._of_task:
            return notes
        hints = [
            f"data.columns.{setting} names the one of {what}"
            for setting, what, names in HINTS
            if getattr(self.settings, setting) is None and set(names) & set(unused)
        ]
        more = f" ({'; '.join(hints)})" if hints else ""
        return [f"{self.key}: columns that are not used: {_listed(unused)}{more}", *notes]


TEXT = "text prompts have template arguments or tools, which only a conversation reads"
SYSTEM = (
    "conversations have a system prompt of their own, and another one in the column of "
    "data.columns.system, which is left out"
)
# Settings that people may have meant, by the names that such columns have.
HINTS = (
    ("tools", "the tools", ("tools", "functions")),
    ("system", "the system prompt", ("system", "system_prompt")),
    ("teacher", "the row's teacher", ("teacher", "teacher_name", "teacher_key")),
    (
        "template_arguments",
        "a row's own template arguments",
        ("template_arguments", "chat_template_kwargs", "kwargs"),
    ),
)


def _listed(names: Sequence[str] | Mapping[str, None]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _nearest(there: Sequence[str] | Mapping[str, Any], names: Sequence[str]) -> str:
    lower = {name.lower(): name for name in there}
    close = [
        match for name in names for match in difflib.get_close_matches(name, lower, n=1, cutoff=0.5)
    ]
    return f"did you mean {lower[close[0]]!r}? " if close else ""


def _no_column(
    row: Mapping[str, Any], needed: str, names: Sequence[str], key: str, place: str
) -> ConfigurationError:
    null = [name for name in names if name in row]
    why = f", and {null[0]!r} is null" if null else ""
    return ConfigurationError(
        f"a row needs {needed}; its columns are {_listed(sorted(row))}{why}",
        where=place,
        fix="give it a value, or leave the row out"
        if null
        else f"{_nearest(sorted(row), names)}name the column in {key}",
    )


def own_arguments(row: Mapping[str, Any], columns: Columns, place: str) -> dict[str, Any]:
    """The row's own keyword arguments of the chat template. Text in such a column is JSON;
    null, no text and no tools are none.

    Raises:
        ConfigurationError: a column is not what it should be.
    """
    own: dict[str, Any] = {}
    column = columns.settings.template_arguments
    value = _json(columns.optional(row, "template_arguments"), column, place)
    if value is not None:
        if not isinstance(value, dict):
            raise ConfigurationError(f"column {column!r} holds no object", where=place)
        own |= value
    for name, tools in (
        (column, own.pop("tools", None)),
        (columns.settings.tools, columns.optional(row, "tools")),
    ):
        found = read_tools(tools, name, place)
        if found:
            own["tools"] = found
    return own


def read_tools(value: Any, column: str | None, place: str) -> list[Any]:
    """The tools as JSON schemas; none for null, an empty list and their texts.

    Raises:
        ConfigurationError: it is no list of objects, or of their texts.
    """
    value = _json(value, column, place)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigurationError(f"column {column!r} holds no list", where=place)
    tools = [_json(tool, column, place) for tool in value]
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise ConfigurationError(
                f"tool {number} of the column {column!r} is no object",
                where=place,
                fix='write tools as JSON schemas: [{"type": "function", "function": {...}}]',
            )
    return tools


def _json(value: Any, column: str | None, place: str) -> Any:
    """What a text stands for; a value that is no text stands for itself."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value)
    except StrictJsonError as error:
        raise ConfigurationError(f"column {column!r} is not JSON: {error}", where=place) from error


def check_text(used: Any, column: str, place: str) -> None:
    """Refuses values that cannot be written as JSON in UTF-8."""
    try:
        json.dumps(used, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"column {column!r} is not a text or a conversation: {error}", where=place
        ) from error


SHOWN_ANSWERS = 3  # rows that an error names


class AnswerColumn:
    """The answers of a dataset's rows. Rows without one are collected, so that one error names
    them."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._texts: dict[str, str] = {}
        self._wrong: list[tuple[str, str]] = []

    def take(self, row: Mapping[str, Any], place: str) -> None:
        """Keeps the row's answer.

        Raises:
            ConfigurationError: as ``check_text``.
        """
        column = str(self._columns.settings.response)
        value = self._columns.optional(row, "response")
        if isinstance(value, str) and value.strip():
            check_text(value, column, place)
            self._texts[place] = value
        elif column not in row:
            self._wrong.append((place, f"there is no column {column!r}"))
        elif isinstance(value, str):
            self._wrong.append((place, "it is empty"))
        else:
            what = "null" if value is None else f"of type {type(value).__name__} and no text"
            self._wrong.append((place, f"it is {what}"))

    def of(self, place: str) -> str | None:
        """The answer of the row at this place; None where it is one of those collected."""
        return self._texts.get(place)

    def finish(self) -> None:
        """Once every row was seen.

        Raises:
            ConfigurationError: rows have no answer.
        """
        refuse_answers(self._wrong, len(self._wrong) + len(self._texts))


def refuse_answers(wrong: Sequence[tuple[str, str]], of: int) -> None:
    """Raises ConfigurationError when there are answers that cannot be used: (place, why)."""
    if wrong:
        shown = "; ".join(f"{place} ({why})" for place, why in wrong[:SHOWN_ANSWERS])
        more = "; ..." if len(wrong) > SHOWN_ANSWERS else ""
        raise ConfigurationError(
            f"{len(wrong)} of {of} rows have no answer that can be learnt from: {shown}{more}",
            where="data.columns.response",
            fix="mend these rows or leave them out; for answers that are too long raise "
            "rollout.max_new_tokens",
        )

"""The rows of a dataset, each with the place that an error names.

A name that ends in one of READERS is a file; another name is a folder of a dataset, or
``name`` or ``owner/name`` on the hub. JSON needs nothing but Python; the others need the
extra ``data``.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.data.files.arrow import dataset_rows, parquet_rows
from student_trainer.data.files.source import PlacedRows, Source, unreadable

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
BOM = b"\xef\xbb\xbf"


def read_rows(source: Source) -> PlacedRows:
    """(place, row) of every row; a place is ``prompts.jsonl, line 3``, ``prompts.json,
    item 3`` or ``prompts.parquet, row 3``.

    Raises:
        ConfigurationError: the source cannot be read, a line is not UTF-8 or not a JSON
            object, or a package is missing.
    """
    reader = _reader(source.name)
    if reader is not None:
        return reader(source)
    path = Path(source.name)
    if path.is_file() or not (path.is_dir() or HUB_NAME.fullmatch(source.name)):
        raise ConfigurationError(
            f"{source.name} is neither a .jsonl nor a .parquet file, nor another that is read "
            f"({', '.join(READERS)}), nor a folder, nor a dataset's name on the hub",
            where=source.key,
            fix="write JSON Lines into a file that ends in .jsonl",
        )
    return dataset_rows(source)


def is_hub_name(name: str) -> bool:
    """Whether ``read_rows`` would look for this name on the hub."""
    return _reader(name) is None and not Path(name).exists()


def _json(source: Source) -> PlacedRows:
    """JSON Lines, or one list of objects."""
    path = Path(source.name)
    try:
        # As bytes: text mode would also split at characters that JSON strings may contain.
        whole = path.read_bytes()
        if path.suffix.lower() == ".gz":
            whole = gzip.decompress(whole)
    except (OSError, EOFError, zlib.error) as error:
        why = str(getattr(error, "strerror", None) or error)
        raise unreadable(source, why) from error
    whole = whole.removeprefix(BOM)
    if ".json" in [suffix.lower() for suffix in path.suffixes] and whole.lstrip()[:1] == b"[":
        for number, row in enumerate(_parsed(whole, str(path), "file"), 1):
            yield f"{path}, item {number}", _object(row, f"{path}, item {number}")
        return
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _object(_parsed(line, place, "line"), place)


def _parsed(text: bytes, place: str, unit: str) -> Any:
    """The JSON of a line or a file. What is no number (NaN) passes: its column may be one
    that nobody uses."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start} of the "
            f"{unit}",
            where=place,
            fix="save the file as UTF-8",
        ) from error
    except RecursionError:
        raise ConfigurationError(
            "it is nested too deeply to be read", where=place, fix="leave the row out"
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"not JSON: {error}",
            where=place,
            fix="write one JSON object a line, or one list of objects in a file that ends in .json",
        ) from error
    except _TwiceError as error:
        raise ConfigurationError(
            f"an object has the key {error.args[0]!r} twice, and which value counts is not known",
            where=place,
            fix="keep one of the two",
        ) from None
    except ValueError:
        raise ConfigurationError(
            "a number has too many digits", where=place, fix="write it as a text"
        ) from None


class _TwiceError(ValueError):
    """An object has this key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _object(row: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ConfigurationError(
            "a row is a JSON object",
            where=place,
            fix='write {"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}',
        )
    return row


# By how a file's name ends.
READERS: dict[str, Callable[[Source], PlacedRows]] = {
    ".jsonl": _json,
    ".jsonl.gz": _json,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": parquet_rows,
}


def _reader(name: str) -> Callable[[Source], PlacedRows] | None:
    return next((READERS[end] for end in READERS if name.lower().endswith(end)), None)

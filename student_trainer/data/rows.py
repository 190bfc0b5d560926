"""The rows of a dataset, each with the place that an error names.

A name that ends in ``.jsonl`` or ``.parquet`` is a file; ``name`` or ``owner/name`` is a
dataset on the hub, or a folder of one. JSONL needs nothing but Python; the others need
the extra ``data``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError, first_line
from teacher_proto.program.distribution import install_command

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        name: a file or a dataset on the hub.
        key: the setting that names it.
        subset, split, revision: of a dataset on the hub.
    """

    name: str
    key: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


# A row, and the place an error names.
PlacedRows = Iterator[tuple[str, Mapping[str, Any]]]


def read_rows(source: Source) -> PlacedRows:
    """(place, row) of every row; a place is ``prompts.jsonl, line 3`` or
    ``prompts.parquet, row 3``.

    Raises:
        ConfigurationError: the source cannot be read, a line is not UTF-8 or not a JSON
            object, or a package is missing.
    """
    reader = READERS.get(Path(source.name).suffix.lower())
    if reader is not None:
        return reader(source)
    path = Path(source.name)
    if path.is_file() or not (path.is_dir() or HUB_NAME.fullmatch(source.name)):
        raise ConfigurationError(
            f"{source.name} is neither a {' nor a '.join(READERS)} file nor a dataset's name "
            "on the hub",
            where=source.key,
            fix="write JSON Lines into a file that ends in .jsonl",
        )
    return _hub(source)


def is_hub_name(name: str) -> bool:
    """Whether ``read_rows`` would look for this name on the hub."""
    return Path(name).suffix.lower() not in READERS and not Path(name).exists()


def _jsonl(source: Source) -> PlacedRows:
    path = Path(source.name)
    try:
        # As bytes: text mode would also split at characters that JSON strings may contain.
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise _unreadable(source, error.strerror or str(error)) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _object(line, place)


def _object(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start} of the line",
            where=place,
            fix="save the file as UTF-8",
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"not JSON: {error}", where=place) from error
    if not isinstance(row, dict):
        raise ConfigurationError(
            "a row is a JSON object",
            where=place,
            fix='write {"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}',
        )
    return row


def _parquet(source: Source) -> PlacedRows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing_extra(source, "pyarrow", "a Parquet file") from error
    try:
        with parquet.ParquetFile(source.name) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{source.name}, row {number}", _without_nulls(row)
    except (OSError, ArrowException) as error:
        raise _unreadable(source, str(error)) from error


def _hub(source: Source) -> PlacedRows:
    try:
        import datasets
    except ImportError as error:
        raise _missing_extra(source, "datasets", "a dataset on the hub") from error
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            source.name, source.subset, split=source.split, revision=source.revision
        )
    except Exception as error:  # the hub's and the reader's errors have no common root
        raise ConfigurationError(
            f"cannot load the dataset {source.name!r}: {first_line(error)}",
            where=source.key,
            fix="check the name, data.subset, the split, the network, HF_TOKEN and "
            "HF_HUB_OFFLINE; a file's name ends in .jsonl or .parquet",
        ) from error
    for number, row in enumerate(found, 1):
        yield f"{source.name}, {source.split} row {number}", _without_nulls(row)


READERS: dict[str, Callable[[Source], PlacedRows]] = {".jsonl": _jsonl, ".parquet": _parquet}


def _without_nulls(value: Any) -> Any:
    """Removes null fields: Arrow gives every object of a column the fields of all others."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _unreadable(source: Source, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot read {source.name}: {why}", where=source.key, fix="check the path"
    )


def _missing_extra(source: Source, package: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} needs the package {package}",
        where=source.key,
        fix=f"{install_command('data')}; JSONL needs no package",
    )

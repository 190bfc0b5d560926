"""Rows kept by Arrow: Parquet files, and what the package ``datasets`` loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError, first_line
from teacher_proto.program.distribution import install_command

from student_trainer.data.files.source import PlacedRows, Source, unreadable

# What Dataset.save_to_disk and DatasetDict.save_to_disk write.
SAVED = ("state.json", "dataset_dict.json")
HUB_SECONDS = 10.0


def parquet_rows(source: Source) -> PlacedRows:
    """The rows of a Parquet file."""
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
                    yield f"{source.name}, row {number}", _row(row)
    except (OSError, ArrowException) as error:
        raise unreadable(source, str(error)) from error


def dataset_rows(source: Source) -> PlacedRows:
    """The rows of a dataset on the hub, of a folder that ``datasets`` loads, or of one that
    ``save_to_disk`` wrote."""
    try:
        import datasets
    except ImportError as error:
        raise _missing_extra(source, "datasets", "a dataset on the hub") from error
    datasets.disable_progress_bars()
    saved = any((Path(source.name) / name).is_file() for name in SAVED)
    try:
        if saved:
            found = datasets.load_from_disk(source.name)
            if isinstance(found, datasets.DatasetDict):
                if source.split not in found:
                    raise ValueError(f"its splits are {', '.join(found)}, not {source.split}")
                found = found[source.split]
        else:
            with _one_try(source):
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
        yield f"{source.name}, {source.split} row {number}", _row(row)


@contextlib.contextmanager
def _one_try(source: Source) -> Iterator[None]:
    """A hub that cannot be reached is asked once and not for half a minute: then only what was
    fetched before is looked at."""
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    reached = True
    if not Path(source.name).exists():
        try:
            HfApi().dataset_info(source.name, revision=source.revision, timeout=HUB_SECONDS)
        except (HfHubHTTPError, ValueError):
            pass  # it answers, or would not be asked for such a name
        except Exception:  # of the HTTP library that the hub uses
            reached = False
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not reached:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """Removes null fields: Arrow gives every object of a column the fields of all others.

    A message keeps the content that it has in any case: templates tell null from absent.
    """
    if isinstance(value, dict):
        kept = ("content",) if "role" in value else ()
        return {
            name: _without_nulls(inner)
            for name, inner in value.items()
            if inner is not None or name in kept
        }
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _missing_extra(source: Source, package: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} needs the package {package}",
        where=source.key,
        fix=f"{install_command('data')}; JSON needs no package",
    )

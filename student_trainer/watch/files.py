"""The files of kept responses: ``rollouts/step-NNNNNN.jsonl.gz``, a record a line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_bytes

# A table in a tracker has a row for each record.
COLUMNS = ("loss", "prompt", "text", "tokens", "finished", "worst tokens")


def file_of(folder: Path, step: int) -> Path:
    """Where those of a step are kept."""
    return folder / f"step-{step:06d}.jsonl.gz"


def kept_steps(folder: Path) -> list[int]:
    """The steps of which responses are kept, in order."""
    names = [re.fullmatch(r"step-(\d{6,})\.jsonl\.gz", path.name) for path in folder.glob("step-*")]
    return sorted(int(name[1]) for name in names if name)


def save(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file whole or not at all; the same records are the same bytes."""
    lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in records]
    # A lone half of a surrogate pair, which a decoded token may hold, is no UTF-8.
    text = "".join(lines).encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, gzip.compress(text, 6, mtime=0))


def load(path: Path) -> list[dict[str, Any]]:
    """The records of a file, the largest loss first.

    Raises:
        ConfigurationError: it is missing or cannot be read.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigurationError(
            f"it cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            fix="restore the file, or delete it: the run does without",
        ) from error


def remove_after(folder: Path, step: int) -> None:
    """Removes those of later steps: a run goes back before them."""
    for later in kept_steps(folder):
        if later > step:
            file_of(folder, later).unlink()


def table(records: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """A row of ``COLUMNS`` for each record."""
    return [
        (
            one["loss"],
            one["prompt"],
            one["text"],
            len(one["ids"]),
            one["finished"],
            " ".join(repr(one["texts"][place]) for place in one["worst"]),
        )
        for one in records
    ]

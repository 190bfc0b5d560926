"""The file that exists while the server is ready, for those who start it and wait."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_text


def prepare_ready_file(path: Path | None) -> None:
    """Removes the file of an earlier run; raises ConfigurationError when it cannot be written."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigurationError(
            "its folder does not exist", where=f"ready_file={path}", fix="create the folder"
        )
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def ready_file(path: Path | None, facts: dict[str, Any]) -> Iterator[None]:
    """The file exists, whole, while the server is ready."""
    if path is None:
        yield
        return
    write_text(path, json.dumps(facts))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

"""The file that exists while the server is ready, for those who start it and wait."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError


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
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(facts))
    part.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

"""The cache of prepared models, which are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import atomic_folder, file_sha256

MANIFEST = "manifest.json"
# Called with one sentence before each slow step.
Note = Callable[[str], None]


def cache_dir(environment: Mapping[str, str] | None = None) -> Path:
    """The project's cache: LSM_CACHE, else XDG_CACHE_HOME/lsm-distill, else ~/.cache/lsm-distill.

    Raises:
        ConfigurationError: the variable holds a relative path.
    """
    values = os.environ if environment is None else environment
    if values.get("LSM_CACHE"):
        return _absolute(values["LSM_CACHE"], "LSM_CACHE")
    if values.get("XDG_CACHE_HOME"):
        return _absolute(values["XDG_CACHE_HOME"], "XDG_CACHE_HOME") / "lsm-distill"
    return Path.home() / ".cache" / "lsm-distill"


def _absolute(value: str, name: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise ConfigurationError(
            f"{value!r} is not an absolute path", where=name, fix=f"give {name} an absolute path"
        )
    return path


def ensure(directory: Path, make: Callable[[Path], Mapping[str, object]]) -> Path:
    """Returns ``directory``, after ``make`` has made it if it does not exist.

    ``make`` fills an empty folder and returns facts for the manifest. The folder is
    renamed into place when it is complete, so that a reader never sees a part of it. If
    two processes make the same folder, the first one wins.

    Raises:
        ConfigurationError: the folder exists, but files in its manifest are missing or
            have another size.
    """
    if directory.exists():
        _check(directory)
        return directory
    try:
        with atomic_folder(directory, readable=True) as work:
            facts = make(work)
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in sorted(work.iterdir())
            }
            manifest = {**facts, "files": files}
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError:
        if not directory.exists():
            raise
        _check(directory)
    return directory


def _check(directory: Path) -> None:
    fix = f"delete {directory} and run the command again"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"the cached model has no readable {MANIFEST} ({error})", where=str(directory), fix=fix
        ) from error
    for name, size in sizes.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise ConfigurationError(
                f"the cached model is damaged: {name} is not the {size} bytes it was made with",
                where=str(directory),
                fix=fix,
            )

"""``~`` in settings: it stands for the home folder, as in a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def expand_home(value: Any) -> Any:
    """A path or a text that begins with ``~/`` or ``~NAME/``, from its home folder; anything
    else as it is.

    Raises:
        ValueError: the home folder is not known.
    """
    if not str(value).startswith("~") or not isinstance(value, str | Path):
        return value
    try:
        found = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(error).rstrip('.')}: write the folder's own path") from None
    return found if isinstance(value, Path) else str(found)

"""Values that are equal but for rounding, also in lists of lists."""

from __future__ import annotations

from typing import Any

import pytest


def near(value: Any, *, rel: float, abs: float) -> Any:
    """What equals ``value`` within ``rel`` or ``abs``; None equals None alone."""
    if isinstance(value, list):
        return [near(one, rel=rel, abs=abs) for one in value]
    return None if value is None else pytest.approx(value, rel=rel, abs=abs)

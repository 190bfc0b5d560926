"""Types that all sections of the settings share."""

from __future__ import annotations

from teacher_proto.program.settings_types import (
    Count,
    NonNegative,
    PathOrName,
    Positive,
    PositiveInt,
    Settings,
    Share,
)

__all__ = ["Count", "NonNegative", "PathOrName", "Positive", "PositiveInt", "Settings", "Share"]

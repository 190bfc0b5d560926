"""What a run is entitled to: its share, its place in line and its quota."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunPolicy:
    run: str
    weight: float = 1.0
    priority: int = 0
    tokens_per_minute: int | None = None

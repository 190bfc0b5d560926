"""What a run is entitled to: its share, its priority and its quota."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunPolicy:
    """Entitlements of one run.

    Attributes:
        weight: its share beside other runs of its priority.
        priority: higher ones go first.
        tokens_per_minute: its quota; None for no bound.
    """

    run: str
    weight: float = 1.0
    priority: int = 0
    tokens_per_minute: int | None = None

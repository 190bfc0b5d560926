"""State of the random generators that a step draws from.

Rollouts, the order of prompts and the choice of rows for metrics draw from streams that
are derived anew from the seed (rollout/sampling.py). Dropout draws from torch's
generators. Nothing else is random, and nothing draws from Python's or NumPy's global
generators.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def capture_rng() -> dict[str, Tensor]:
    """The state of torch's generators, uint8 by device."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and "cuda0" in states:
        count = sum(1 for name in states if name.startswith("cuda"))
        torch.cuda.set_rng_state_all([states[f"cuda{i}"] for i in range(count)])

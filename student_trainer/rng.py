"""State of every source of random numbers a step can draw from, as tensors.

Rollouts and the order of prompts draw from streams of their own, made anew from
the seed (rollout/sampling.py); what is left are the process-wide generators.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

CUDA = "cuda"


def capture_rng() -> dict[str, Tensor]:
    """States of torch's, Python's and NumPy's process-wide generators."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss]),
        "numpy gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"{CUDA}{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(states: Mapping[str, Tensor]) -> None:
    """Sets what ``capture_rng`` gave; CUDA's where there is a device."""
    torch.set_rng_state(states["torch"])
    gauss = states["python gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    cached = float(states["numpy gauss"])
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
    if torch.cuda.is_available() and f"{CUDA}0" in states:
        count = sum(1 for name in states if name.startswith(CUDA))
        torch.cuda.set_rng_state_all([states[f"{CUDA}{i}"] for i in range(count)])

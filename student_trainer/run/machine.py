"""What a run was made with: ``machine.json``, which its report shows."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("lsm-distill", "torch", "transformers", "numpy")


def describe_machine(device: torch.device) -> dict[str, str]:
    """Versions and hardware, by what they are of; nothing that names the machine or its user."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from its sources
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processors"] = f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"
    found["device"] = str(device)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found["device"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    return found

"""The optimiser's tensors in a checkpoint: whole tensors by name, in one file, or with several
ranks in a file of each. How many files there are says nothing of how many ranks may read them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from student_trainer.distributed.world import World

ONE = "optimizer.safetensors"


def file_of(rank: int, size: int) -> str:
    """The name of the file that a rank writes."""
    return ONE if size == 1 else f"optimizer-{rank + 1:05d}-of-{size:05d}.safetensors"


def files_among(names: Iterable[str]) -> list[str]:
    """Which files hold the optimiser's tensors of a checkpoint that has files of these names:
    where one has the name of a rank's file, those of all its ranks."""
    for name in sorted(names):
        if found := re.fullmatch(r"optimizer-\d{5}-of-(\d{5})\.safetensors", name):
            size = int(found[1])
            return [file_of(rank, size) for rank in range(size)]
    return [ONE]


def write(folder: Path, tensors: Mapping[str, Tensor], world: World) -> Path:
    """Writes this rank's file, and returns it. Whole tensors are gathered one after the other,
    and a rank keeps those that it writes.

    Args:
        tensors: the same names in the same order on every rank.

    Raises:
        OSError, SafetensorError: it cannot be written. Another rank raises RankError.
    """
    path = folder / file_of(world.rank, world.size)
    if not world.several:
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, path)
        return path
    total = sum(one.numel() for one in tensors.values())
    mine: dict[str, Tensor] = {}
    before = 0
    for name, one in tensors.items():
        # Cut by size, so that every rank writes about as much.
        owner = min(before * world.size // max(total, 1), world.size - 1)
        before += one.numel()
        whole = one.full_tensor() if isinstance(one, DTensor) else one
        if owner == world.rank:
            mine[name] = whole.detach().cpu().contiguous()

    def save() -> None:
        save_file(mine, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    world.each(save)
    return path


def read(folder: Path, names: Iterable[str], masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, and where this rank holds a part of a parameter, the same part
    of what belongs to it.

    Args:
        names: of the checkpoint's files, as its manifest lists them.
        masters: the parameters that the optimiser updates, by name.

    Raises:
        OSError, SafetensorError: a file is not there, or cannot be read.
    """
    found: dict[str, Tensor] = {}
    for name in files_among(names):
        found |= _read_one(folder / name, masters)
    return found


def _read_one(path: Path, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``read`` gives of one file."""
    if not any(isinstance(one, DTensor) for one in masters.values()):
        return load_file(path)
    found: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            kind, parameter = key.split("/", 1)
            master = masters.get(parameter)
            if kind != "step" and isinstance(master, DTensor):
                found[key] = _part(file.get_slice(key), master)
            else:
                found[key] = file.get_tensor(key)
    return found


def _part(kept: object, master: DTensor) -> DTensor:
    """The rows of a kept tensor that this rank holds of a parameter."""
    (placement,) = master.placements
    assert isinstance(placement, Shard)
    assert placement.dim == 0, "parameters are spread by rows"
    mesh = master.device_mesh
    each = -(-master.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * each, master.shape[0])
    rows: Tensor = kept[first : first + master.to_local().shape[0]]  # type: ignore[index]
    return DTensor.from_local(
        rows.to(master.device),
        mesh,
        master.placements,
        run_check=False,
        shape=torch.Size(master.shape),
        stride=master.stride(),
    )

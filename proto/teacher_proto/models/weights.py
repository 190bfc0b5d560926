"""The weight files of a checkpoint, and their sha256, which does not depend on the shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError

_READ_BYTES = 4 * 2**20


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint; those that its index names when it has one.

    Raises:
        ConfigurationError: there are none, or one that the index names is missing.
    """
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ConfigurationError(
                f"weight files are missing: {', '.join(missing)}", where=f"model {directory}"
            )
        return [directory / name for name in names]
    raise ConfigurationError(
        "it has no safetensors weights",
        where=f"model {directory}",
        fix="save it with save_pretrained(..., safe_serialization=True); other formats are refused",
    )


def weights_digest(files: Sequence[Path]) -> str:
    """The sha256, in hex, of the names, dtypes, shapes and bytes of all tensors.

    It is the same for the same tensors in other shards or another order.

    Raises:
        ConfigurationError: a file is not safetensors, or is cut short.
    """
    tensors: list[tuple[str, Path, dict[str, Any], int]] = []
    for path in files:
        header, base = _read_header(path)
        header.pop("__metadata__", None)
        tensors += [(name, path, entry, base) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor[0])
    total = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda t: _tensor_digest(t[1], t[2], t[3]), tensors)
        for (name, _, entry, _), digest in zip(tensors, digests, strict=True):
            line = json.dumps([name, entry["dtype"], entry["shape"], digest])
            total.update(line.encode() + b"\n")
    return total.hexdigest()


def tensor_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Name of a tensor -> its shape.

    Raises:
        ConfigurationError: a file is not safetensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        header, _ = _read_header(path)
        header.pop("__metadata__", None)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return shapes


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the byte where its data begins."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            return json.loads(file.read(length)), 8 + length
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"not a safetensors file: {error}", where=str(path), fix="copy the checkpoint again"
        ) from error


def _tensor_digest(path: Path, entry: dict[str, Any], base: int) -> str:
    begin, end = entry["data_offsets"]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(base + begin)
        left = end - begin
        while left > 0:
            block = file.read(min(left, _READ_BYTES))
            if not block:
                raise ConfigurationError("the file is cut short", where=str(path))
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()

"""The file that hands weights over: safetensors with a manifest. Nothing here imports vLLM.

A reader trusts nothing that it has not checked: the version, how many tensors there are,
where the file ends, and the checksum of names, shapes and bytes. What the manifest says is
written last, so that a file that was cut has none.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.errors import LsmError
from torch import Tensor

FAILED = "HAND_OVER_FAILED"
LENGTH = struct.Struct("<Q")
METADATA = "__metadata__"
# Bytes that are read at a time while a checksum is computed.
PIECE = 2**24
# The names that safetensors has for dtypes.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True)
class Manifest:
    """What a file of weights says of itself.

    Attributes:
        version: completed updates of the student that it is of.
        tensors: how many there are.
        crc32: of their names, dtypes and shapes, and then of their bytes.
    """

    version: int
    tensors: int
    crc32: int

    def to_metadata(self) -> dict[str, str]:
        """Its values as safetensors keeps them, always of the same length."""
        numbers = {"version": self.version, "tensors": self.tensors, "crc32": self.crc32}
        return {name: f"{number:020d}" for name, number in numbers.items()}


UNWRITTEN = Manifest(0, 0, 0)


def write_weights(path: Path, version: int, tensors: Mapping[str, Tensor]) -> Manifest:
    """Writes tensors as safetensors, one after another; on the way one of them is in memory
    a second time at most.

    Raises:
        OSError: there is no room.
    """
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    crc = _crc_of(entries)
    with path.open("wb") as file:
        head = _header(UNWRITTEN, entries)
        file.write(head)
        os.posix_fallocate(file.fileno(), 0, len(head) + end)
        for tensor in tensors.values():
            data = _bytes_of(tensor)
            crc = zlib.crc32(data, crc)
            file.write(data)
        manifest = Manifest(version, len(entries), crc)
        file.seek(0)
        file.write(_header(manifest, entries))
    return manifest


def read_weights(path: Path, version: int) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, as views of the file itself: they are valid for as long
    as it is not written to.

    Args:
        version: the one that is expected.

    Raises:
        LsmError: the file is not there, cut, damaged, or of another version.
    """
    try:
        raw = np.memmap(path, np.uint8, mode="c")
        (length,) = LENGTH.unpack(raw[: LENGTH.size].tobytes())
        header = json.loads(raw[LENGTH.size : LENGTH.size + length].tobytes())
        said = {name: int(number) for name, number in header.pop(METADATA).items()}
        data = raw[LENGTH.size + length :]
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, struct.error) as error:
        raise failed(f"its file cannot be read: {error}", path) from error
    if len(data) != max(ends, default=0):
        raise failed(f"its file has {len(data)} bytes of {max(ends, default=0)}", path)
    crc = _crc_of(header)
    for begin in range(0, len(data), PIECE):
        crc = zlib.crc32(data[begin : begin + PIECE].data, crc)
    found = Manifest(said.get("version", 0), len(header), crc)
    if said != {n: int(v) for n, v in found.to_metadata().items()}:
        raise failed("its file is not whole, or was damaged on the way", path)
    if found.version != version:
        raise failed(f"its file is of version {found.version}, not of {version}", path)
    return {name: _tensor(data, entry) for name, entry in header.items()}


def failed(
    what: str, where: object = "rollout.vllm", fix: str = "mend what it names and start again"
) -> LsmError:
    """The error of a hand-over, after which vLLM writes nothing until one has succeeded."""
    return LsmError(
        f"vLLM did not take over the student's weights: {what}",
        where=str(where),
        fix=f"{fix}: the run resumes after its last complete step",
        reason=FAILED,
    )


def _header(manifest: Manifest, entries: Mapping[str, Any]) -> bytes:
    text = json.dumps({METADATA: manifest.to_metadata(), **entries}).encode()
    text += b" " * (-len(text) % LENGTH.size)
    return LENGTH.pack(len(text)) + text


def _crc_of(entries: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries).encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    dtype = DTYPES[entry["dtype"]]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    return torch.from_numpy(data[begin:end]).view(dtype).reshape(entry["shape"])

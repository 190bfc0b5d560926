"""Digests of identities and chat templates, from the definitions in docs/contract.md alone."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def canonical(value: Any) -> str:
    """JSON of texts, whole numbers, arrays and objects, written by hand."""
    if isinstance(value, str):
        return '"' + "".join(map(_character, value)) + '"'
    if isinstance(value, Mapping):
        pairs = sorted(value.items(), key=lambda pair: [ord(one) for one in pair[0]])
        return "{" + ",".join(f"{canonical(k)}:{canonical(v)}" for k, v in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    assert isinstance(value, int)
    return str(value)


def _character(one: str) -> str:
    if one in SHORT:
        return SHORT[one]
    return f"\\u{ord(one):04x}" if ord(one) < 0x20 else one


def sha256(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()


def identity_digest(identity: Mapping[str, str]) -> str:
    """Of a TeacherIdentity's other fields."""
    counted = {key: text for key, text in identity.items() if key != "digest"}
    if not counted["chat_template_digest"]:
        del counted["chat_template_digest"]
    return sha256(canonical(counted))


def weights_digest(*files: Path) -> str:
    """Of the tensors in safetensors files."""
    lines = {}
    for file in files:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            shape = ", ".join(map(str, tensor["shape"]))
            digest = sha256(data[begin:end])
            lines[name] = f'["{name}", "{tensor["dtype"]}", [{shape}], "{digest}"]\n'
    ordered = sorted(lines.items(), key=lambda pair: [ord(one) for one in pair[0]])
    return sha256("".join(line for _, line in ordered))

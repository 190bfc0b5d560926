"""The files of a checkpoint: its directory, its safetensors files, the dtypes it can be run in."""

from __future__ import annotations

import json
from pathlib import Path

from teacher_proto.errors import ConfigurationError

DTYPES = ("float32", "bfloat16", "float16")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]


def check_dtype(dtype: str) -> None:
    """Refuses every name but "auto", which is the checkpoint's own dtype, and ``DTYPES``.

    Raises:
        ConfigurationError: the name is neither.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigurationError(
            f"unknown dtype {dtype!r}", where="dtype", fix=f"use auto, {', '.join(DTYPES)}"
        )


def resolve(model: str) -> Path:
    """The directory of a model: a path as it stands, or the snapshot of a hub model.

    Raises:
        ConfigurationError: there is no such directory, or the hub has no such model for us.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    parts = model.split("/")
    if path.exists() or len(parts) > 2 or model.startswith((".", "~")) or not all(parts):
        raise ConfigurationError(
            "there is no such directory",
            where=f"model {model}",
            fix="give a directory with config.json and safetensors files, or a hub id",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"it is neither a directory here nor a model the hub gives us: {error}",
            where=f"model {model}",
            fix="check the name, the network and HF_HUB_OFFLINE, or give a directory",
        ) from error


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

"""The dtypes that a checkpoint can be run in, and the folder that an engine loads it from."""

from __future__ import annotations

from pathlib import Path

from teacher_proto.errors import ConfigurationError
from teacher_proto.models.folder import WEIGHT_FILES, model_folder

DTYPES = ("float32", "bfloat16", "float16")


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
    """The directory of a model's configuration and weights; raises as ``model_folder``."""
    return model_folder(model, WEIGHT_FILES, where=f"model {model}")

"""The contract between trainers and the teacher service, and its client.

Imports neither torch nor transformers. The names below are loaded when first
used, so that importing a submodule costs nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher_proto.client import AsyncTeacherClient as AsyncTeacherClient
    from teacher_proto.client import TeacherClient as TeacherClient
    from teacher_proto.errors import LsmError as LsmError
    from teacher_proto.types import ScoreReply as ScoreReply
    from teacher_proto.types import ScoreRequest as ScoreRequest

_HOME = {
    "AsyncTeacherClient": "client",
    "TeacherClient": "client",
    "LsmError": "errors",
    "ScoreReply": "types",
    "ScoreRequest": "types",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

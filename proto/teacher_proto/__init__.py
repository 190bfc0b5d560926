"""The contract between trainers and the teacher service, and its client.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teacher_proto.program.lazy import lazy_names

if TYPE_CHECKING:
    from teacher_proto.client import AsyncTeacherClient as AsyncTeacherClient
    from teacher_proto.client import TeacherClient as TeacherClient
    from teacher_proto.errors import LsmError as LsmError
    from teacher_proto.types import ScoreReply as ScoreReply
    from teacher_proto.types import ScoreRequest as ScoreRequest

_HOMES = {
    "AsyncTeacherClient": "client",
    "TeacherClient": "client",
    "LsmError": "errors",
    "ScoreReply": "types",
    "ScoreRequest": "types",
}

__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)

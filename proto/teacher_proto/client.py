"""The clients of the teacher service."""

from teacher_proto.async_client import AsyncTeacherClient
from teacher_proto.sync_client import TeacherClient

__all__ = ["AsyncTeacherClient", "TeacherClient"]

"""The clients of the teacher service."""

from teacher_proto.client.async_client import AsyncTeacherClient
from teacher_proto.client.sync_client import TeacherClient

__all__ = ["AsyncTeacherClient", "TeacherClient"]

"""How a trainer finds its teacher: credentials, a first call, and the teacher of its name."""

from __future__ import annotations

from collections.abc import Sequence

from teacher_proto.client import TeacherClient
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import TeacherInfo

from student_trainer.settings.teacher import TeacherSettings


def connect(settings: TeacherSettings, run: str) -> TeacherClient:
    """A client with the credentials of the settings.

    Raises:
        ConfigurationError: the credentials cannot be used.
    """
    token = settings.token
    credentials = ClientCredentials(
        token="" if token is None else token.get_secret_value(),
        token_file=settings.token_file,
        tls=settings.tls,
        ca=settings.ca,
        cert=settings.cert,
        key=settings.key,
        insecure_plaintext=settings.insecure_plaintext,
    )
    return TeacherClient(
        settings.address, run=run, credentials=credentials, max_attempts=settings.attempts
    )


def check_reachable(settings: TeacherSettings, run: str, *, key: str = "teacher") -> TeacherInfo:
    """The teacher of the settings, asked for before anything slow is done.

    Args:
        key: of the section of the settings, for errors.

    Raises:
        TeacherUnavailableError, DeadlineError: nothing answers at the address
            within ``connect_timeout_seconds``.
        UnauthenticatedError, ForbiddenError: the credentials are refused, in general or
            for this run.
        ConfigurationError: the server has no teacher of this name.
    """
    with connect(settings, run) as client:
        server = client.get_teacher(timeout=settings.connect_timeout_seconds)
    return find_teacher(server.teachers, settings, key=key)


def service_date(settings: TeacherSettings, run: str) -> float | None:
    """The service's clock when it answers, in whole seconds since the epoch; None when
    its answer has no date.

    Raises:
        TeacherUnavailableError and others: see ``TeacherClient``.
    """
    with connect(settings, run) as client:
        return client.service_date(timeout=settings.connect_timeout_seconds)


def find_teacher(
    teachers: Sequence[TeacherInfo], settings: TeacherSettings, *, key: str = "teacher"
) -> TeacherInfo:
    """The teacher that the settings name. Raises ConfigurationError when it is not served."""
    for teacher in teachers:
        if teacher.name == settings.name:
            return teacher
    raise ConfigurationError(
        f"the service at {settings.address} has no teacher {settings.name!r}",
        where=f"{key}.name",
        fix=f"name one of {sorted(t.name for t in teachers)}",
    )

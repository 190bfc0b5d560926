"""Settings of the connection to the teacher service. Times in seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from teacher_proto.program.settings_keys import is_secret

from student_trainer.settings.base import Positive, PositiveInt, Settings

# The name of a run's only teacher, the one of the section [teacher].
ONLY_TEACHER = "default"
# A name is a part of environment variables, which join parts by two underscores.
TEACHER_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")


class TeacherSettings(Settings):
    """The connection to the teacher service."""

    address: str = Field(
        default="127.0.0.1:50051", description="`HOST:PORT` of the service's gRPC port."
    )
    name: str = Field(default="default", description="The teacher's name on that service.")
    prompt: Literal["own", "student"] = Field(
        default="own",
        description="What a teacher with the student's tokenizer reads before a response to a "
        "conversation: `own`, as the teacher's chat template renders it, or `student`, the tokens "
        "that the student read. A teacher with another tokenizer always reads its own.",
    )
    token: SecretStr | None = Field(
        default=None, description="The run's token, from the environment alone."
    )
    token_file: Path | None = Field(
        default=None,
        description="File that holds the run's token; nobody but its owner may have access to it.",
    )
    tls: bool = Field(
        default=False,
        description="Encrypt the connection, and trust this machine's certificate authorities.",
    )
    ca: Path | None = Field(
        default=None,
        description="PEM file of certificate authorities: encrypt the connection, and trust "
        "these alone.",
    )
    cert: Path | None = Field(
        default=None, description="PEM file of the trainer's own certificate."
    )
    key: Path | None = Field(default=None, description="PEM file of the key of `teacher.cert`.")
    insecure_plaintext: bool = Field(
        default=False, description="Send the token to another machine without encryption."
    )
    connect_timeout_seconds: Positive = Field(
        default=15.0, description="Seconds to look for the service at the start."
    )
    timeout_seconds: Positive = Field(
        default=600.0, description="Seconds that one request may take, retries included."
    )
    max_in_flight: PositiveInt = Field(
        default=64, description="Requests under way at once; further ones wait in the trainer."
    )
    attempts: PositiveInt | None = Field(
        default=None,
        description="Tries of one request; unset, as many as its timeout allows.",
    )


class NamedTeacherSettings(TeacherSettings):
    """One of several teachers of a run, `[teachers.NAME]`: the keys of `[teacher]`, and these."""

    weight: Positive = Field(
        default=1.0, description="Factor of the loss of the rows that this teacher scores."
    )
    top_k: PositiveInt | None = Field(
        default=None,
        description="How many of its own ids this teacher returns for each row; unset, as many as "
        "`loss.top_k`.",
    )


def check_names(teachers: Mapping[str, NamedTeacherSettings]) -> None:
    """Raises ValueError for names that cannot be used, and for one teacher under two names."""
    if not teachers:
        raise ValueError("teachers is empty: name one as [teachers.NAME], or leave it out")
    for name in teachers:
        if not TEACHER_NAME.fullmatch(name):
            raise ValueError(
                f"teachers.{name}: a teacher's name is lower-case letters and digits, joined by "
                "single - or _"
            )
        if is_secret((name,)):
            raise ValueError(
                f"teachers.{name}: this name would hide the teacher's settings as "
                "secrets; choose another"
            )
    served: dict[tuple[str, str], str] = {}
    for name, one in teachers.items():
        first = served.setdefault((one.address, one.name), name)
        if first != name:
            raise ValueError(
                f"teachers.{first} and teachers.{name} are one teacher, {one.name!r} at "
                f"{one.address}: leave one of them out, or correct its address or name"
            )

"""Settings of the connection to the teacher service. Times in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from student_trainer.settings.base import Positive, PositiveInt, Settings


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

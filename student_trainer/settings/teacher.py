"""Settings of the connection to the teacher service. Times in seconds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from student_trainer.settings.base import Positive, PositiveInt, Settings


class TeacherSettings(Settings):
    address: str = Field(
        default="127.0.0.1:50051", description="host:port of the service's gRPC port"
    )
    name: str = Field(default="default", description="name of the teacher on that service")
    token: SecretStr | None = Field(
        default=None, description="the run's token; from the environment only"
    )
    token_file: Path | None = Field(
        default=None, description="file with the run's token, readable by its owner only"
    )
    tls: bool = Field(
        default=False, description="encrypt, and trust the certificate authorities of this machine"
    )
    ca: Path | None = Field(
        default=None, description="encrypt, and trust only the authorities in this PEM file"
    )
    cert: Path | None = Field(default=None, description="the trainer's own certificate, PEM")
    key: Path | None = Field(default=None, description="private key of cert, PEM")
    insecure_plaintext: bool = Field(
        default=False, description="allow sending the token unencrypted beyond this machine"
    )
    connect_timeout_seconds: Positive = Field(
        default=15.0, description="how long to wait for the teacher at the start"
    )
    timeout_seconds: Positive = Field(
        default=600.0, description="time limit of one request, retries included"
    )
    max_in_flight: PositiveInt = Field(
        default=64, description="requests that are sent at a time; others wait in the trainer"
    )
    attempts: PositiveInt | None = Field(
        default=None,
        description="attempts per request within its timeout; if unset, as many as fit",
    )

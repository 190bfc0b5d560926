"""Settings of the connection to the teacher service. Times in seconds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from student_trainer.settings.base import Positive, PositiveInt, Settings


class TeacherSettings(Settings):
    address: str = Field(
        default="127.0.0.1:50051", description="host:port of the service's gRPC port"
    )
    name: str = Field(default="default", description="the teacher's name on that service")
    token: SecretStr | None = Field(
        default=None, description="the run's token; from the environment only"
    )
    token_file: Path | None = Field(
        default=None, description="file with the run's token, for its owner's eyes only"
    )
    tls: bool = Field(
        default=False, description="encrypt, and trust this machine's certificate authorities"
    )
    ca: Path | None = Field(
        default=None, description="encrypt, and trust the authorities of this PEM file alone"
    )
    cert: Path | None = Field(default=None, description="the trainer's own certificate, PEM")
    key: Path | None = Field(default=None, description="key of cert, PEM")
    insecure_plaintext: bool = Field(
        default=False, description="send the token unencrypted beyond this machine"
    )
    connect_timeout_seconds: Positive = Field(
        default=15.0, description="how long to look for it at start"
    )
    timeout_seconds: Positive = Field(
        default=600.0, description="bound on one request, retries included"
    )
    max_in_flight: PositiveInt = Field(
        default=64, description="requests sent at once; others wait in the trainer"
    )
    attempts: PositiveInt | None = Field(
        default=None, description="tries per request within its timeout; unset, until the timeout"
    )

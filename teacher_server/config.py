"""The server's settings (docs/reference/teacher-server-settings.md).

Every key can be given in a TOML file, as an environment variable
(``LSM_TEACHER__LIMITS__MAX_QUEUE_TOKENS``), with ``--set`` or, for the common
ones, as a flag of its own. Sizes are bytes or tokens, times are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator
from teacher_proto.program.settings_types import Settings

from teacher_server.queue.policy import RunPolicy
from teacher_server.settings.limits import MIB, LimitSettings
from teacher_server.settings.teachers import EngineSettings, Name, TeacherSettings
from teacher_server.settings.tokenizers import TokenizerSettings

Port = Annotated[int, Field(ge=0, le=65535)]
RunName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class RunSettings(Settings):
    """What one run is entitled to, by its name; credentials that name the run override these."""

    weight: float = Field(
        default=1.0,
        ge=0.001,
        le=1000.0,
        description="Share of a teacher's tokens beside other runs that ask at the same time.",
    )
    priority: int = Field(
        default=0,
        ge=-10,
        le=10,
        description="Requests of a higher priority go first (docs/service.md).",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Quota of tokens over all teachers, per minute; unset, none.",
    )

    def policy(self, run: str) -> RunPolicy:
        return RunPolicy(run, self.weight, self.priority, self.tokens_per_minute)


class ReplaySettings(Settings):
    """Replies kept to answer a request that is repeated with the same id and content."""

    max_entries: int = Field(default=1024, ge=0, description="Replies that are kept; 0 keeps none.")
    max_bytes: int = Field(
        default=256 * MIB, ge=0, description="Bytes of all replies that are kept."
    )
    max_seconds: float = Field(default=300.0, gt=0, description="Seconds that a reply is kept.")


class TlsSettings(Settings):
    """Encryption, by PEM files; replaced files are used from the next connection on."""

    cert: Path | None = Field(
        default=None,
        description="The server's certificate chain, leaf first; unset, connections are not "
        "encrypted.",
    )
    key: Path | None = Field(
        default=None,
        description="Key of that certificate; nobody but its owner may have access to the file.",
    )
    client_ca: Path | None = Field(
        default=None,
        description="Certificate authorities: a client must show a certificate of one of them.",
    )


class AccessSettings(Settings):
    """Who may call (docs/access.md); with none of these set, everybody who reaches a port."""

    credentials_file: Path | None = Field(
        default=None,
        description="TOML file of runs with their tokens and entitlements; it is read again "
        "when it changes.",
    )
    credentials: SecretStr | None = Field(
        default=None, description="The same text, from the environment alone."
    )
    audit_file: Path | None = Field(
        default=None,
        description="File that gets one line per call: who called, what, when, and how it ended.",
    )

    @property
    def configured(self) -> bool:
        return self.credentials_file is not None or self.credentials is not None


class ServeConfig(Settings):
    """All settings of ``teacher-server serve``."""

    teachers: dict[Name, TeacherSettings] = Field(default_factory=dict)
    engine: EngineSettings = EngineSettings()
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    grpc_port: Port = Field(
        default=50051, description="Port of the gRPC server; 0 takes a free one."
    )
    http_port: Port = Field(
        default=8080, description="Port of the HTTP server; 0 takes a free one."
    )
    insecure_plaintext: bool = Field(
        default=False,
        description="Allow a host beyond loopback without credentials or without encryption.",
    )
    tls: TlsSettings = TlsSettings()
    access: AccessSettings = AccessSettings()
    ready_file: Path | None = Field(
        default=None,
        description="File that is written when the server is ready: JSON with its pid, "
        "addresses and teachers.",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        description="Seconds that work in progress may take after SIGTERM or SIGINT.",
    )
    http_timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Seconds that an HTTP request may take when it sets no timeout itself.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level of the lines that are logged."
    )
    limits: LimitSettings = LimitSettings()
    # By the name of the run.
    runs: dict[RunName, RunSettings] = Field(default_factory=dict)
    replay: ReplaySettings = ReplaySettings()
    tokenizers: TokenizerSettings = TokenizerSettings()

    @model_validator(mode="after")
    def _certificates_stand_for_runs(self) -> Self:
        if self.tls.client_ca is not None and not self.access.configured:
            raise ValueError(
                "tls.client_ca is set, and no access.credentials_file says which run a "
                "client certificate stands for"
            )
        return self

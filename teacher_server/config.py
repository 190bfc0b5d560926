"""The server's settings (docs/service.md).

Every key can be given in a TOML file, as an environment variable
(``LSM_TEACHER__LIMITS__MAX_QUEUE_TOKENS``), with ``--set`` or, for the common
ones, as a flag of its own. Sizes are bytes or tokens, times are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from teacher_proto.types import ServerLimits

from teacher_server.queue.policy import RunPolicy

MIB = 1024 * 1024
INT32_MAX = 2**31 - 1
Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
RunName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSettings(Settings):
    """How models are run. A teacher may set any of these for itself."""

    name: Literal["transformers", "vllm"] = "transformers"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Equal requests give equal bytes, whatever else is computed with them.
    deterministic: bool = False
    # Tokens of one forward pass.
    max_batch_tokens: int = Field(default=8192, ge=1)
    # Longest prompt plus continuation; None takes the model's own limit.
    max_length: int | None = Field(default=None, ge=2)
    # vLLM's own engine arguments, passed through (docs/vllm.md).
    vllm: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _options_fit_the_engine(self) -> Self:
        if self.vllm and self.name != "vllm":
            raise ValueError(f"options of vllm are set and engine.name is {self.name}")
        return self


class TeacherSettings(Settings):
    """One teacher. What is None is taken from ``engine``."""

    # A folder with safetensors and tokenizer.json, a hub name, or a LoRA adapter's folder.
    model: str = Field(min_length=1)
    # Of an adapter: the teacher it belongs to; None finds the one its folder names.
    base: Name | None = None
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    deterministic: bool | None = None
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=2)
    vllm: dict[str, Any] | None = None

    def engine(self, shared: EngineSettings) -> EngineSettings:
        """The shared engine settings with this teacher's own on top."""
        return shared.model_copy(update=self.own_engine_settings)

    @property
    def own_engine_settings(self) -> dict[str, Any]:
        """The engine settings that this teacher sets for itself."""
        return self.model_dump(exclude={"model", "base"}, exclude_none=True)


class LimitSettings(Settings):
    """Requests beyond these are refused before they are queued."""

    max_request_bytes: int = Field(default=16 * MIB, ge=1, le=512 * MIB)
    max_reply_bytes: int = Field(default=64 * MIB, ge=1, le=1024 * MIB)
    max_continuations: int = Field(default=1024, ge=1, le=INT32_MAX)
    # Per row.
    max_explicit_ids: int = Field(default=4096, ge=0, le=INT32_MAX)
    # None: the teacher's whole vocabulary.
    max_top_k: int | None = Field(default=None, ge=1)
    max_request_tokens: int = Field(default=262_144, ge=2)
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    # Tokens inside one engine at once; None: what keeps it busy (docs/service.md).
    max_inflight_tokens: int | None = Field(default=None, ge=1)
    max_tokenizer_bytes: int = Field(default=64 * MIB, ge=1)
    # Text that is tokenized for one prompt, or for the continuations of one request.
    max_text_bytes: int = Field(default=4 * MIB, ge=1)

    @model_validator(mode="after")
    def _the_queue_holds_a_request(self) -> Self:
        if self.max_queue_tokens < self.max_request_tokens:
            raise ValueError(
                f"max_queue_tokens={self.max_queue_tokens} is less than "
                f"max_request_tokens={self.max_request_tokens}: the largest request could "
                "never wait"
            )
        return self

    def server_limits(self) -> ServerLimits:
        return ServerLimits(
            max_request_bytes=self.max_request_bytes,
            max_reply_bytes=self.max_reply_bytes,
            max_continuations=self.max_continuations,
            max_explicit_ids=self.max_explicit_ids,
            max_request_tokens=self.max_request_tokens,
            max_queue_tokens=self.max_queue_tokens,
            max_tokenizer_bytes=self.max_tokenizer_bytes,
            max_text_bytes=self.max_text_bytes,
        )


class TokenizerSettings(Settings):
    """Students' tokenizers that are not the teacher's (docs/realignment.md)."""

    # Where registered tokenizers and the tables of pairs are kept; None: in memory only.
    folder: Path | None = None
    # Tokenizers kept; the least recently used are removed first.
    max_count: int = Field(default=64, ge=1)
    max_bytes: int = Field(default=1024 * MIB, ge=1)
    # Pairs of a student's and a teacher's tokenizer in memory.
    max_pairs: int = Field(default=8, ge=1)
    # Whether the teacher is asked for its rows behind single tokens, each once: without
    # them more of a row stays open.
    lone_rows: bool = True
    # Further forwards per request for what a row leaves unsettled, one batch each.
    extra_rounds: int = Field(default=0, ge=0, le=8)
    # Rows of one such batch, and the open mass from which a row is worth one.
    extra_rows: int = Field(default=256, ge=1, le=4096)
    extra_least_open: float = Field(default=0.1, ge=0.001, le=1.0)

    @model_validator(mode="after")
    def _a_tokenizer_fits(self) -> Self:
        if self.folder is not None and not self.folder.is_absolute():
            raise ValueError(f"folder={self.folder} is not an absolute path")
        return self


class RunSettings(Settings):
    """What one run is entitled to, unless credentials name the run."""

    # Its share beside other runs that ask at the same time.
    weight: float = Field(default=1.0, ge=0.001, le=1000.0)
    # Higher ones go first (docs/service.md).
    priority: int = Field(default=0, ge=-10, le=10)
    tokens_per_minute: int | None = Field(default=None, ge=1)

    def policy(self, run: str) -> RunPolicy:
        return RunPolicy(run, self.weight, self.priority, self.tokens_per_minute)


class ReplaySettings(Settings):
    """How many replies are kept to answer a repeated request id; 0 entries: none."""

    max_entries: int = Field(default=1024, ge=0)
    max_bytes: int = Field(default=256 * MIB, ge=0)
    max_seconds: float = Field(default=300.0, gt=0)


class TlsSettings(Settings):
    """PEM files; all None: plain text. Replaced files are used from the next connection on."""

    # The server's certificate, leaf first, and its key, which only its owner may read.
    cert: Path | None = None
    key: Path | None = None
    # Clients must show a certificate of this authority.
    client_ca: Path | None = None


class AccessSettings(Settings):
    """Who may call (docs/access.md); all None: everybody who reaches the port."""

    # Runs with their tokens and entitlements; read again when it changes.
    credentials_file: Path | None = None
    # The same text from the environment.
    credentials: SecretStr | None = None
    # One line a call: who, what, when, how it ended.
    audit_file: Path | None = None

    @property
    def configured(self) -> bool:
        return self.credentials_file is not None or self.credentials is not None


class ServeConfig(Settings):
    """All settings of ``teacher-server serve``."""

    teachers: dict[Name, TeacherSettings] = Field(default_factory=dict)
    engine: EngineSettings = EngineSettings()
    host: str = Field(default="127.0.0.1", min_length=1)
    # 0 takes a free port.
    grpc_port: Port = 50051
    http_port: Port = 8080
    # Allows a host beyond loopback without credentials or without encryption.
    insecure_plaintext: bool = False
    tls: TlsSettings = TlsSettings()
    access: AccessSettings = AccessSettings()
    # Written when the server is ready: JSON with pid, addresses and teachers.
    ready_file: Path | None = None
    # How long work in progress may take after SIGTERM or SIGINT.
    drain_seconds: float = Field(default=30.0, ge=0)
    # Longest time of an HTTP request that sets none itself.
    http_timeout_seconds: float = Field(default=120.0, gt=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
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

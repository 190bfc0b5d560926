"""The server's settings (docs/reference/teacher-server-settings.md).

Every key can be given in a TOML file, as an environment variable
(``LSM_TEACHER__LIMITS__MAX_QUEUE_TOKENS``), with ``--set`` or, for the common
ones, as a flag of its own. Sizes are bytes or tokens, times are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from teacher_proto.program.files import expand_home
from teacher_proto.program.settings_types import Settings
from teacher_proto.types import ServerLimits

from teacher_server.queue.budget import PARTS
from teacher_server.queue.policy import RunPolicy

MIB = 1024 * 1024
INT32_MAX = 2**31 - 1
Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
RunName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class EngineSettings(Settings):
    """How models are run. A teacher may set any of these for itself."""

    name: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="`transformers` for a CPU or one GPU, `vllm` for production (docs/vllm.md).",
    )
    device: str = Field(
        default="auto",
        description="`cpu`, `cuda` or `cuda:N`; `auto` takes CUDA where there is a GPU. vLLM "
        "takes `auto` alone.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type of weights and activations; `auto` is the checkpoint's.",
    )
    deterministic: bool = Field(
        default=False,
        description="Equal requests give equal bytes, whatever else is computed with them; slower.",
    )
    max_batch_tokens: int = Field(default=8192, ge=1, description="Tokens of one forward pass.")
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of the longest prompt plus continuation; unset, the model's own limit.",
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's own engine arguments by their names, passed through (docs/vllm.md).",
    )

    @model_validator(mode="after")
    def _options_fit_the_engine(self) -> Self:
        if self.vllm and self.name != "vllm":
            raise ValueError(f"options of vllm are set and engine.name is {self.name}")
        return self


class TeacherSettings(Settings):
    """One teacher, by the name that requests use. An unset key is taken from ``engine``."""

    model: Annotated[str, AfterValidator(expand_home)] = Field(
        min_length=1,
        description="A folder with safetensors and `tokenizer.json`, a hub name, or the folder "
        "of a LoRA adapter.",
    )
    base: Name | None = Field(
        default=None,
        description="Of an adapter, the teacher that it belongs to; unset, the one whose model "
        "the adapter's folder names.",
    )
    device: str | None = Field(default=None, description="As `engine.device`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        default=None, description="As `engine.dtype`."
    )
    deterministic: bool | None = Field(default=None, description="As `engine.deterministic`.")
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="As `engine.max_batch_tokens`."
    )
    max_length: int | None = Field(default=None, ge=2, description="As `engine.max_length`.")
    vllm: dict[str, Any] | None = Field(
        default=None, description="As `engine.vllm`, which it replaces whole."
    )

    def engine(self, shared: EngineSettings) -> EngineSettings:
        """The shared engine settings with this teacher's own on top."""
        return shared.model_copy(update=self.own_engine_settings)

    @property
    def own_engine_settings(self) -> dict[str, Any]:
        """The engine settings that this teacher sets for itself."""
        return self.model_dump(exclude={"model", "base"}, exclude_none=True)


class LimitSettings(Settings):
    """Requests beyond these are refused before they are queued."""

    max_request_bytes: int = Field(
        default=16 * MIB, ge=1, le=512 * MIB, description="Bytes of one request."
    )
    max_reply_bytes: int = Field(
        default=64 * MIB, ge=1, le=1024 * MIB, description="Bytes of one reply."
    )
    max_continuations: int = Field(
        default=1024, ge=1, le=INT32_MAX, description="Continuations of one request."
    )
    max_explicit_ids: int = Field(
        default=4096,
        ge=0,
        le=INT32_MAX,
        description="Ids that a request may ask for explicitly at one row.",
    )
    max_top_k: int | None = Field(
        default=None,
        ge=1,
        description="Largest K of a request; unset, the teacher's whole vocabulary.",
    )
    max_request_tokens: int = Field(
        default=262_144,
        ge=2,
        description="Tokens of one request: its prompt and all its continuations.",
    )
    max_queue_tokens: int = Field(
        default=1_048_576, ge=1, description="Tokens that may wait in the queue of one teacher."
    )
    max_inflight_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens inside one engine at once; unset, as many as keep it busy "
        "(docs/service.md).",
    )
    max_tokenizer_bytes: int = Field(
        default=64 * MIB, ge=1, description="Bytes of one tokenizer that is registered."
    )
    max_text_bytes: int = Field(
        default=4 * MIB,
        ge=1,
        description="Bytes of text that is tokenized for one prompt, or for all continuations "
        "of one request.",
    )
    max_render_prompts: int = Field(
        default=1024, ge=1, le=INT32_MAX, description="Prompts of one request to render."
    )
    max_bytes_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="Bytes of request bodies and replies that the server holds at once; unset, "
        "512 MiB, or twice what the largest request and its reply take.",
    )
    max_bytes_in_flight_per_run: int | None = Field(
        default=None,
        ge=1,
        description="Of these, bytes of one run, or of one peer where no run is known before "
        "the body is read; unset, a quarter of them, or what the largest request and its reply "
        "take.",
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        description="Connections of each of the two ports; unset, as many as the files allow "
        "that the process may have open (docs/service.md).",
    )
    max_connections_per_address: int | None = Field(
        default=None,
        ge=1,
        description="Of these, connections from one address, or from one /64 of IPv6; unset, "
        "half of them.",
    )
    header_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds in which a new connection must ask for something: TLS handshake "
        "and headers must each be complete within them.",
    )
    body_seconds: float = Field(
        default=30.0, gt=0, description="Seconds in which some of a request's body must arrive."
    )
    write_seconds: float = Field(
        default=30.0, gt=0, description="Seconds in which a caller must read some of its reply."
    )

    @model_validator(mode="after")
    def _limits_fit_each_other(self) -> Self:
        if self.max_queue_tokens < self.max_request_tokens:
            raise ValueError(
                f"max_queue_tokens={self.max_queue_tokens} is less than "
                f"max_request_tokens={self.max_request_tokens}: the largest request could "
                "never wait"
            )
        largest = self._largest_in_flight
        for name, given in (
            ("max_bytes_in_flight", self.bytes_in_flight),
            ("max_bytes_in_flight_per_run", self.bytes_in_flight_per_run),
        ):
            if given < largest:
                raise ValueError(
                    f"{name}={given} is less than {largest}, which the largest request "
                    "(max_request_bytes or max_tokenizer_bytes) and its reply (max_reply_bytes) "
                    "take with a sixteenth that is kept for small ones"
                )
        if self.bytes_in_flight_per_run > self.bytes_in_flight:
            raise ValueError(
                f"max_bytes_in_flight_per_run={self.bytes_in_flight_per_run} is more than "
                f"max_bytes_in_flight={self.bytes_in_flight}"
            )
        total, one = self.max_connections, self.max_connections_per_address
        if total is not None and one is not None and one > total:
            raise ValueError(
                f"max_connections_per_address={one} is more than max_connections={total}"
            )
        return self

    @property
    def bytes_in_flight(self) -> int:
        """``max_bytes_in_flight``, or what stands for it where it is unset."""
        given = self.max_bytes_in_flight
        return max(512 * MIB, 2 * self._largest_in_flight) if given is None else given

    @property
    def bytes_in_flight_per_run(self) -> int:
        given = self.max_bytes_in_flight_per_run
        quarter = self.bytes_in_flight // 4
        return max(quarter, self._largest_in_flight) if given is None else given

    @property
    def _largest_in_flight(self) -> int:
        body = max(self.max_request_bytes, self.max_tokenizer_bytes)
        return -(-(body + self.max_reply_bytes) * PARTS // (PARTS - 1))

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
            max_render_prompts=self.max_render_prompts,
        )


class TokenizerSettings(Settings):
    """Students' tokenizers that are not the teacher's (docs/realignment.md)."""

    folder: Path | None = Field(
        default=None,
        description="Folder, by its absolute path, for registered tokenizers and the tables of "
        "pairs; unset, they are kept in memory alone.",
    )
    max_count: int = Field(
        default=64,
        ge=1,
        description="Tokenizers that are kept, equal ones of several runs counted once; the "
        "least recently used of runs that are idle are removed first.",
    )
    max_bytes: int = Field(
        default=1024 * MIB, ge=1, description="Bytes of all tokenizers that are kept."
    )
    max_registrations: int = Field(
        default=4096,
        ge=1,
        description="Registrations that are kept: each of a run and a tokenizer, also where "
        "several runs have the same one.",
    )
    max_per_run: int = Field(
        default=8,
        ge=1,
        description="Tokenizers of one run; its own least recently used goes first.",
    )
    max_bytes_per_run: int | None = Field(
        default=None,
        ge=1,
        description="Bytes of the tokenizers of one run; a single one is taken whatever its "
        "size. Unset, a quarter of max_bytes.",
    )
    active_seconds: float = Field(
        default=600.0,
        ge=0.0,
        le=86_400.0,
        description="A run that registered or used a tokenizer since so long ago is active: no "
        "registration of another run removes its tokenizers.",
    )
    max_idle_seconds: float = Field(
        default=7 * 86_400.0,
        gt=0.0,
        le=10 * 365 * 86_400.0,
        description="A registration that was not used for so long is removed, its roles of "
        "special ids with it; clients register again by themselves.",
    )
    max_pairs: int = Field(
        default=64,
        ge=1,
        description="Pairs of a student's and a teacher's tokenizer whose tables stay in memory "
        "at most; max_memory_bytes bounds them too.",
    )
    worker_memory_bytes: int = Field(
        default=2048 * MIB,
        ge=128 * MIB,
        description="Memory of the process in which one student's tokenizer runs; what takes "
        "more is refused.",
    )
    max_memory_bytes: int = Field(
        default=4096 * MIB,
        ge=128 * MIB,
        description="Memory of all these processes together; the least recently used one that "
        "no request needs is ended first.",
    )
    worker_seconds: float = Field(
        default=120.0,
        gt=0.0,
        description="Seconds of a processor for reading one student's tokenizer, and for "
        "building its tables with a teacher's; what takes more is refused.",
    )
    context_free_rows: bool = Field(
        default=True,
        description="Ask the teacher for context-free rows, which follow a single token, each "
        "once; without them more mass of a realigned row stays open.",
    )
    extra_rounds: int | None = Field(
        default=None,
        ge=0,
        le=8,
        description="Rounds of extra rows of a request, one batch each, that settle mass which "
        "its rows leave open; 0: none. Unset, 2 of a teacher whose engine keeps the prefixes that "
        "it has read (vllm), and none of one that would read them again in each round.",
    )
    extra_rows_per_token: float = Field(
        default=0.3,
        ge=0.0,
        le=8.0,
        description="Extra rows of a request, in all of its rounds together, for each of the "
        "teacher's tokens that are scored, at most; 0: none.",
    )
    extra_rows: int = Field(
        default=1024, ge=1, le=4096, description="Rows of one such batch, at most."
    )
    extra_least_open: float = Field(
        default=0.01,
        ge=0.001,
        le=1.0,
        description="A row with less open mass is not worth one of them.",
    )

    @model_validator(mode="after")
    def _a_tokenizer_fits(self) -> Self:
        if self.folder is not None and not self.folder.is_absolute():
            raise ValueError(f"folder={self.folder} is not an absolute path")
        if self.max_memory_bytes < self.worker_memory_bytes:
            raise ValueError(
                f"max_memory_bytes={self.max_memory_bytes} is less than "
                f"worker_memory_bytes={self.worker_memory_bytes}: a process that takes what it "
                "may would be ended after each request"
            )
        return self

    @property
    def bytes_per_run(self) -> int:
        return self.max_bytes // 4 if self.max_bytes_per_run is None else self.max_bytes_per_run


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

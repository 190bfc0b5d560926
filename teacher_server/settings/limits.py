"""What a caller may send, ask for and keep open."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from teacher_proto.program.settings_types import Settings
from teacher_proto.types import ServerLimits

from teacher_server.queue.budget import PARTS

MIB = 1024 * 1024
INT32_MAX = 2**31 - 1


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

"""Students' tokenizers: how many, how large, and what realigning with them may take."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from teacher_proto.program.settings_types import Settings

from teacher_server.settings.limits import MIB


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

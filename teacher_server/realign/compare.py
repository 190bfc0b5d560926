"""How well two tokenizers fit, measured on a text and without a model: the command
``teacher-server tokenizers compare``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from teacher_proto.program.mask_reasons import FORMER_REASONS, REASON_TEXTS
from teacher_proto.types import Level, MaskReason

from teacher_server.realign.pair.cache import TableCache
from teacher_server.realign.pair.layout import lay_out
from teacher_server.realign.pair.levels import pair_level
from teacher_server.realign.pair.static_tables import BYTE_TOKENS
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.reasons import STATIC_REASONS, static_reasons

# What the comparison encodes when no text is given: the cases on which tokenizers differ.
SAMPLE = """\
A short paragraph of ordinary English prose: it isn't long, but it has contractions, \
commas, and a few longer words like "unbelievable" or "retokenisation".

def area(radius: float) -> float:
    \"\"\"The area of a circle.\"\"\"
    return 3.14159 * radius ** 2  # square units

12345 + 678 = 13023, 2024-06-30, $1,299.00, 0.001, 1e-5 and 7 * 8 = 56.
Ünïcödé, naïve cafe\u0301, Привет, мир! 你好，世界。学习语言需要耐心。 🙂 👩\u200d👩\u200d👧 🇫🇷
\tTabs,  two spaces,\r\nline ends \u2581 and <|im_end|> typed as text.
"""
EXTENSIONS_SHOWN = 10
NEED_ROWS = tuple(
    reason.name for reason in MaskReason if reason not in (*STATIC_REASONS, *FORMER_REASONS)
)


@dataclass(frozen=True)
class Comparison:
    """Shares are of the text's student tokens.

    Attributes:
        roles: (role, student's token, teacher's token); None where a side has none.
        spelt_by_teacher, spelt_by_student: added tokens that only the other side has.
        aligned: share of positions where the teacher's encoding has a boundary.
        inside: share of positions inside a teacher token.
        masked: share of positions that are masked whatever the teacher's rows hold.
        reasons: the same by reason, of those that need no row to be known.
        round_trip_failures: bytes that the teacher reads only one by one.
        extensions: (teacher token, rate), the tokens that most often turn out to be the
            beginning of a longer student token; rate as ``StaticTables.extension_rate``.
        extendable_tokens: how many teacher tokens may be extended.
        trie_nodes: of the prefix trie.
        table_seconds: what building the tables took; 0 when they were in the cache.
        difference: how the two tokenizers differ, the student's first; empty where they
            have one fingerprint.
    """

    level: Level
    student_hash: str
    teacher_hash: str
    student_tokens: int
    teacher_tokens: int
    roles: tuple[tuple[str, str | None, str | None], ...]
    spelt_by_teacher: int
    spelt_by_student: int
    aligned: float
    inside: float
    masked: float
    reasons: Mapping[MaskReason, float]
    round_trip_failures: int
    extensions: tuple[tuple[str, float], ...]
    extendable_tokens: int
    trie_nodes: int
    table_seconds: float
    layout_microseconds_per_token: float
    difference: str = ""


def compare(student: Vocabulary, teacher: Vocabulary, text: bytes, cache: TableCache) -> Comparison:
    """Lays the text out in both tokenizers.

    Args:
        text: at least one byte; bytes that are not UTF-8 count as round-trip failures.

    Raises:
        ValueError: one of the tokenizers has no token for a byte of the text.
    """
    started = time.perf_counter()
    tables = cache.get(student, teacher)
    build = time.perf_counter() - started
    student, teacher = tables.student, tables.teacher
    ids = student.encoder.encode(text).ids
    started = time.perf_counter()
    layout = lay_out(ids, tables)
    seconds = time.perf_counter() - started
    meets = np.isin(layout.student_offsets[:-1], layout.teacher_offsets)
    reasons = static_reasons(layout, np.arange(len(ids)))
    masked = reasons != 0
    return Comparison(
        level=pair_level(student, teacher),
        student_hash=student.hash,
        teacher_hash=teacher.hash,
        student_tokens=len(ids),
        teacher_tokens=len(layout.teacher_ids),
        roles=_roles(tables),
        spelt_by_teacher=len(student.spelt),
        spelt_by_student=len(teacher.spelt),
        aligned=float((meets & ~masked).mean()),
        inside=float((~meets & ~masked).mean()),
        masked=float(masked.mean()),
        reasons={one: float((reasons == one).mean()) for one in STATIC_REASONS},
        round_trip_failures=int(teacher.encoder.encode(text).byte_by_byte.sum()),
        extensions=_extensions(tables),
        extendable_tokens=int(tables.may_extend.sum()),
        trie_nodes=len(tables.static.trie_edges),
        table_seconds=build,
        layout_microseconds_per_token=seconds / len(ids) * 1e6,
    )


def _roles(tables: PairTables) -> tuple[tuple[str, str | None, str | None], ...]:
    rows: list[tuple[str, str | None, str | None]] = []
    for token, role in sorted(tables.student.roles.items()):
        if role.name == "OTHER":
            continue
        mapped = tables.special_to_teacher.get(token)
        other = None if mapped is None else tables.teacher.specials[mapped]
        rows.append((role.name, tables.student.specials[token], other))
    known = set(tables.special_to_teacher.values())
    for token, role in sorted(tables.teacher.roles.items()):
        if role.name != "OTHER" and token not in known:
            target = int(tables.special_to_student[token])
            text = None if target < 0 else tables.student.specials[target]
            rows.append((role.name, text, tables.teacher.specials[token]))
    return tuple(rows)


def _extensions(tables: PairTables) -> tuple[tuple[str, float], ...]:
    """By rate times the token's own frequency, so that what matters comes first."""
    place = np.maximum(np.cumsum(tables.teacher.ordinary), BYTE_TOKENS)
    rate = tables.static.extension_rate
    weight = np.where(tables.may_extend, rate, 0.0) / place
    best = np.argsort(-weight, kind="stable")[:EXTENSIONS_SHOWN]
    return tuple(
        (tables.teacher.token_bytes[t].decode("utf-8", "replace"), float(rate[t]))
        for t in best.tolist()
        if weight[t] > 0
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "level": found.level.name,
        "difference": found.difference,
        "student": {"tokenizer_hash": found.student_hash, "tokens": found.student_tokens},
        "teacher": {"tokenizer_hash": found.teacher_hash, "tokens": found.teacher_tokens},
        "roles": [
            {"role": role, "student": student, "teacher": teacher}
            for role, student, teacher in found.roles
        ],
        "spelt": {"by_teacher": found.spelt_by_teacher, "by_student": found.spelt_by_student},
        "shares": {
            "aligned": found.aligned,
            "inside_a_teacher_token": found.inside,
            "masked": found.masked,
        },
        "mask_reasons": {reason.name: share for reason, share in found.reasons.items()},
        "mask_reasons_that_need_rows": list(NEED_ROWS),
        "round_trip_failures": found.round_trip_failures,
        "extendable_tokens": found.extendable_tokens,
        "trie_nodes": found.trie_nodes,
        "extensions": [{"token": token, "rate": rate} for token, rate in found.extensions],
        "table_seconds": found.table_seconds,
        "layout_microseconds_per_token": found.layout_microseconds_per_token,
    }


def as_text(found: Comparison) -> str:
    """The table that people read."""
    lines = [
        f"level               {found.level.name}",
        f"student             {found.student_tokens} tokens, {found.student_hash[:16]}",
        f"teacher             {found.teacher_tokens} tokens, {found.teacher_hash[:16]}",
        f"aligned             {found.aligned:8.2%}  the teacher has a boundary there",
        f"inside a token      {found.inside:8.2%}  of the teacher",
        f"masked              {found.masked:8.2%}  whatever the teacher's rows hold",
        *[
            f"  {reason.name:<18}{share:8.2%}  {REASON_TEXTS[reason]}"
            for reason, share in found.reasons.items()
        ],
        f"  not known without the teacher's rows: {', '.join(NEED_ROWS)}",
        f"round-trip failures {found.round_trip_failures:8d}  bytes",
        f"spelt added tokens  {found.spelt_by_teacher:8d}  of the student by the teacher, "
        f"{found.spelt_by_student} the other way round",
        f"extendable tokens   {found.extendable_tokens:8d}  of the teacher "
        f"({found.trie_nodes} paths)",
        f"tables              {found.table_seconds:8.2f}  s",
        f"layout              {found.layout_microseconds_per_token:8.1f}  us a token",
        "",
        *([found.difference, ""] if found.difference else []),
        f"{'role':<15} {'student':<28} teacher",
    ]
    for role, student, teacher in found.roles:
        lines.append(f"{role.lower():<15} {student or '-':<28} {teacher or '-'}")
    lines += ["", "teacher tokens that most often begin a longer student token"]
    lines += [f"  {token!r:<20} {rate:8.2f}" for token, rate in found.extensions]
    return "\n".join(lines) + "\n"

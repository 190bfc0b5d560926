"""Teachers that write a run of spaces as one token, the last of them too, which students give to
the word after it: rows before such a token, inside it, and of what goes on behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from teacher_proto.types import PositionClass

from teacher_server.realign.certify import _below_best
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import TAIL_SKEW, PairTables
from teacher_server.realign.pair.vocabulary import read_vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.requests.realigned import NOTHING_SETTLED
from teacher_server.realign.segmentation.pair_segmentation import NOT_IMPLIED, PairSegmentation
from teacher_server.realign.segmentation.states import EMPTY_STATE
from teacher_server.realign.walk.context_free import LEAST_SHARE, ContextFreeRows
from teacher_server.realign.walk.masses import Entries, WalkResult
from teacher_server.realign.walk.rows import teacher_rows
from tests.realign.real_tokenizers import pair
from tests.realign.toys import SPACE, bpe_document, toy

Row = Mapping[bytes, float]
TEXT = "x = [\n    word"
THREE, FOUR, TWELVE = b" " * 3, b" " * 4, b" " * 12
SURE = 0.9


def realigned(
    tables: PairTables,
    after: Mapping[bytes, Row],
    alone: Mapping[bytes, Row] | None,
    text: str = TEXT,
) -> tuple[RealignedRows, list[bytes]]:
    """The rows of a text and the student's tokens. ``after``: the teacher's rows after its tokens;
    after others it is sure of what was written. ``alone``: its context-free rows; None: it goes
    without."""
    student, teacher, realigner = tables.student, tables.teacher, Realigner(tables)
    layout = realigner.lay_out(student.encoder.encode(text.encode()).ids)
    own = layout.teacher_ids.tolist()
    known = ContextFreeRows(tables)
    for token, row in (alone or {}).items():
        ids = np.array([[teacher.by_bytes[one] for one in row]], np.int32)
        values = np.log([list(row.values())])
        realigner.learn(known, np.array([teacher.by_bytes[token]]), ids, values)
    width = max(len(row) for row in after.values())
    ids = np.full((len(own), width), -1, np.int32)
    values = np.zeros((len(own), width))
    likely = []
    for place, token in enumerate(own):
        before = teacher.token_bytes[own[place - 1]] if place else b""
        row = after.get(before, {teacher.token_bytes[token]: 1.0})
        ranked = sorted(row.items(), key=lambda item: -item[1])
        ids[place, : len(row)] = [teacher.by_bytes[one] for one, _ in ranked]
        values[place, : len(row)] = np.log([mass for _, mass in ranked])
        likely.append(np.log(row[teacher.token_bytes[token]]))
    rows = teacher_rows(layout.teacher_ids, ids, values, np.array(likely))
    positions = np.arange(len(layout.student_ids))
    context_free = None if alone is None else known
    got = realigner.realign(layout, positions, rows, top_k=6, context_free=context_free)
    return got, [student.token_bytes[token] for token in layout.student_ids.tolist()]


def masses(got: RealignedRows, position: int, tables: PairTables) -> dict[bytes, float]:
    count = int(got.certified.counts[position])
    ids = got.certified.ids[position, :count].tolist()
    values = np.exp(got.certified.log_probs[position, :count]).tolist()
    return {tables.student.token_bytes[i]: v for i, v in zip(ids, values, strict=True)}


@pytest.mark.parametrize(
    ("student", "teacher"), [("qwen3", "gemma3"), ("gpt4o", "gemma2"), ("llama3", "gemma3")]
)
def test_the_last_space_of_a_token_is_the_next_words(student: str, teacher: str) -> None:
    """Of four spaces and a word, three and a word with its space."""
    tables = pair(student, teacher)
    after = {b"\n": {FOUR: SURE, b"word": 1 - SURE}, FOUR: {b"word": 0.7, b"other": 0.3}}
    got, tokens = realigned(tables, after, {})
    here = tokens.index(THREE)
    assert tokens[here + 1] == b" word"
    assert masses(got, here, tables)[THREE] == pytest.approx(SURE, abs=1e-3)
    assert got.position_class[here + 1] == PositionClass.MID
    found = masses(got, here + 1, tables)
    assert found[b" word"] == pytest.approx(0.7, abs=1e-3)
    assert found[b" other"] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(("line_end", "told"), [(0.02, 1.0), (0.1, 0.9), (0.4, 0.0)])
def test_spaces_without_a_row_get_the_part_that_no_line_end_follows(
    line_end: float, told: float
) -> None:
    """Twelve spaces become eleven, but before a line end, with which they are one token."""
    tables = pair("qwen3", "gemma3")
    row = {b"\n": line_end, b"word": 1 - line_end}
    assert (1 - line_end >= LEAST_SHARE) == (told > 0)
    after = {b"\n": {FOUR: 0.5, b"word": 0.3, TWELVE: 0.2}, FOUR: {b"word": 1.0}}
    got, tokens = realigned(tables, after, {TWELVE: row, b"word": {b" ": 1.0}})
    here = tokens.index(THREE)
    found = masses(got, here, tables)
    settled, eleven = got.walked.settled, tables.student.by_bytes[b" " * 11]
    given = settled.mass[(settled.position == here) & (settled.token == eleven)].sum()
    assert given == pytest.approx(0.2 * told, abs=1e-3)
    assert got.certified.open_mass[here] == pytest.approx(0.2 * (1 - told), abs=1e-3)
    sure = 1 - told <= 0.05
    assert found.get(b" " * 11, 0.0) == pytest.approx(0.2 if sure else 0.0, abs=1e-3)
    # What is open of twelve spaces may not become three, where it is known to be little.
    assert (THREE in found) == (told > 0)


@pytest.mark.parametrize("alone", [None, {}], ids=["without", "unknown"])
def test_a_space_before_spaces_without_a_row_is_not_taken_for_a_space_alone(
    alone: dict[bytes, Row] | None,
) -> None:
    """GPT-2 writes each space by itself, and the last with the word. Of two spaces behind the first
    one is left, which the next word takes along: never a token by itself."""
    tables = pair("gpt2", "gemma3")
    after = {b"\n": {FOUR: 0.7, b"  ": 0.3}, FOUR: {b"word": 1.0}}
    got, tokens = realigned(tables, after, alone)
    here = tokens.index(b" word") - 2
    assert tokens[here - 1 : here + 3] == [b" ", b" ", b" ", b" word"]
    assert got.certified.open_mass[here] == pytest.approx(0.3, abs=1e-3)
    settled, space = got.walked.settled, tables.student.by_bytes[b" "]
    given = settled.mass[(settled.position == here) & (settled.token == space)].sum()
    assert given == pytest.approx(0.7, abs=1e-3)


def test_a_space_and_the_character_behind_it_may_be_two_tokens() -> None:
    """A thumb with its space is one token of Gemma's; a space alone is as likely, and of what is
    behind it the first bytes are there."""
    tables = pair("llama3", "gemma3")
    thumb = " \U0001f44d".encode()
    after = {b" sun": {thumb: 0.5, b" ": 0.5}}
    got, tokens = realigned(tables, after, {}, "the sun \U0001f44d")
    here = tokens.index(b" \xf0\x9f\x91") + 1
    assert b"".join(tokens[here - 1 :]) == thumb
    assert got.certified.open_mass[here] == pytest.approx(0.5, abs=1e-3)


def test_few_spaces_without_a_row_stand_before_a_word() -> None:
    """Of less than LEAST_ASKED no context-free row is asked for."""
    tables = pair("qwen3", "gemma3")
    after = {b"\n": {FOUR: 0.996, TWELVE: 0.004}, FOUR: {b"word": 1.0}}
    got, tokens = realigned(tables, after, {})
    here = tokens.index(THREE)
    assert got.certified.open_mass[here] == pytest.approx(0.0, abs=1e-6)
    assert masses(got, here, tables)[b" " * 11] == pytest.approx(0.004, abs=1e-4)


def test_what_a_row_after_spaces_does_not_list_is_no_threat_to_every_word() -> None:
    """A tenth of it is below its best ids: some words, and no line end."""
    tables = pair("qwen3", "gemma3")
    after = {b"\n": {FOUR: 1.0}, FOUR: {b"word": 0.85, b"other": 0.05}}
    got, tokens = realigned(tables, after, {})
    here = tokens.index(THREE)
    assert masses(got, here, tables)[THREE] == pytest.approx(1.0, abs=1e-3)
    assert masses(got, here + 1, tables)[b" word"] == pytest.approx(0.85, abs=1e-3)
    assert got.certified.open_mass[here + 1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("line_end", [0.0, 0.9])
def test_a_symbol_behind_the_spaces_may_take_a_line_end_along(line_end: float) -> None:
    """ "],", and Qwen 3 has it with a space before and a line end behind it as one token, which
    Gemma itself would begin with the space and the symbols."""
    tables = pair("qwen3", "gemma3")
    after = {b"\n": {FOUR: 1.0}, FOUR: {b"word": 0.8, b"],": 0.2}}
    row = {b"word": 1 - line_end} | ({b"\n": line_end} if line_end else {})
    got, tokens = realigned(tables, after, {b"],": row})
    here = tokens.index(THREE) + 1
    assert got.certified.open_mass[here] == pytest.approx(0.2 if line_end else 0.0, abs=1e-3)
    assert (b" ]," in masses(got, here, tables)) == (not line_end)


def test_which_spaces_end_with_their_token() -> None:
    """Gemma has a token for each number of spaces; Qwen 3 writes eight before a word as seven
    and a word with its space."""
    for teacher, token, wanted in [
        ("gemma3", FOUR, THREE),
        ("qwen3", FOUR, None),
        ("qwen3", b" ", None),
    ]:
        tables = pair("llama3", teacher)
        known = PairSegmentation(tables)
        ids = np.array([tables.teacher.by_bytes[token]])
        state = known.states.step(np.array([EMPTY_STATE]), ids)
        answer = int(known.before_solid(state, ids)[0])
        assert answer == (NOT_IMPLIED if wanted is None else tables.student.by_bytes[wanted])


def test_a_side_that_cannot_write_what_may_follow_implies_nothing() -> None:
    """Letters without the ones that are tried behind spaces: nothing is known, and no error."""
    apart = dict.fromkeys(("add_prefix_space", "use_regex", "trim_offsets"), False)
    teacher = read_vocabulary(
        json.dumps(
            bpe_document(
                f"ab7{SPACE}", [(SPACE, SPACE)], pre_tokenizer={"type": "ByteLevel", **apart}
            )
        )
    )
    student = toy(f"ab7{SPACE}", [(SPACE, "b")])
    tables = PairTables(student, teacher, build_static(student, teacher))
    two = np.array([teacher.by_bytes[b"  "]])
    assert tables.student_token_before_word[two[0]] == -1
    known = PairSegmentation(tables)
    state = known.states.step(np.array([EMPTY_STATE]), two)
    assert known.before_solid(state, two).tolist() == [NOT_IMPLIED]


def test_unread_tokens_behind_a_space_are_as_many_as_begin_with_the_rest() -> None:
    tables = pair("qwen3", "gemma3")
    counts, own = tables.count_behind_space, tables.student.by_bytes
    table = tables.teacher.token_bytes
    assert counts[own[b" ("]] == sum(data[:1] == b"(" for data in table)
    assert counts[own[b" "]] >= len(tables.teacher.order)
    assert counts[own[b"word"]] == tables.teacher_token_count[own[b"word"]]
    nothing, both = np.zeros(0, np.int64), np.array([0, 1])
    few: Any = SimpleNamespace(
        teacher_token_count=np.array([2]),
        count_behind_space=np.array([30]),
        not_wide_count=np.array([2]),
        teacher=SimpleNamespace(size=10_000),
    )
    walked = WalkResult(
        settled=NOTHING_SETTLED,
        open=Entries(nothing, nothing, np.zeros(0), nothing, nothing, nothing, nothing),
        lost=np.zeros(2),
        total=np.ones(2),
        tail=np.full(2, 0.1),
        floor=np.full(2, 0.004),
        listed=np.full(2, 100),
        wide=np.zeros(2, np.bool_),
        behind_space=np.array([True, False]),
        wanted=nothing,
    )
    below = _below_best(walked, both, both * 0, np.array([1, 1]), few)
    one = TAIL_SKEW * 0.1 / 10_000
    np.testing.assert_allclose(below, [29 * one, one])

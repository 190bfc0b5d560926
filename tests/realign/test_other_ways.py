"""What may go on in another way than the text so far by itself: runs of symbols, added tokens
that have begun, characters, and tokens of the rollout that the text by itself does not have."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_proto.types import PositionClass

from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.reference.pasts import Window, pasts_of
from teacher_server.realign.pair.added import AddedTexts
from teacher_server.realign.pair.sync_points import apart_from_added
from teacher_server.realign.realigner import Realigner
from tests.realign.real_tokenizers import pair, raw_tokenizer
from tests.realign.test_spaces import SURE, masses, row_after

STARTS = "<|start_header_id|>"


def test_the_end_of_a_run_of_symbols_decides_how_it_begins() -> None:
    """The teacher writes ">", two backticks and ",", which the student cuts behind the first
    backtick; without the comma it would cut behind ">"."""
    tables = pair("llama3", "deepseek_v3")
    got, tokens = row_after(tables, "the <s>``, it")
    here = tokens.index(b">`")
    assert masses(got, here, tables)[b">`"] == pytest.approx(SURE**3, abs=0.01)


def test_a_run_of_symbols_is_open_where_its_end_is_not_known() -> None:
    """Off the rollout, whose next row has two backticks: what follows these is known from their
    context-free row alone."""
    tables = pair("llama3", "deepseek_v3")
    for then, is_open in ((b",", True), (b" it", False)):
        rest = {b">": {b"``": 0.9}, b"``": {then: 0.9}}
        got, tokens = row_after(tables, "the <s> it", other={b"``": 0.02}, context_free=rest)
        found = masses(got, tokens.index(b">"), tables)
        assert found[b">"] == pytest.approx(SURE**2 if is_open else SURE, abs=1e-3)


def test_a_rollout_on_another_way_than_its_text_by_itself_is_followed() -> None:
    """ "endo" by itself is one token of the teacher; before "ftext" it writes "end" and "of"."""
    tables = pair("llama3", "deepseek_v3")
    got, tokens = row_after(tables, "a <|endoftext|>")
    here = tokens.index(b"endo") + 1
    assert tokens[here] == b"ft"
    assert got.position_class[here] == PositionClass.MID
    assert masses(got, here, tables)[b"ft"] == pytest.approx(1.0, abs=0.05)


def test_text_that_may_become_an_added_token_is_open() -> None:
    """The student has a token for "<think>". Of a teacher that spells it, "('<" is open as long as
    the next rows do not say what comes of it, and "think" behind "<" is mostly ruled out."""
    tables = pair("qwen3", "llama3")
    quoted = b"('<"
    for then, is_open in ((b"think", True), (b"x", False)):
        after = {quoted: {then: 0.9}, b"think": {b">": 0.9}}
        got, tokens = row_after(tables, "print('x')", other={quoted: 0.02}, context_free=after)
        here = tokens.index(b"('")
        assert (quoted in masses(got, here, tables)) != is_open
        assert bool(got.certified.open_mass[here] > 0.015) == is_open
    after = {b"think": {b">": 0.9}}
    got, tokens = row_after(tables, "a <x", other={b"think": 0.02}, context_free=after)
    here = tokens.index(b"x")
    assert got.walked.total[here] == pytest.approx(1 - 0.02 * 0.9, abs=1e-3)


def test_a_character_goes_on_though_no_token_of_the_student_holds_both_of_its_bytes() -> None:
    """It ends its first token there: nothing of it is lost."""
    tables = pair("llama3", "qwen3")
    start, end = b" \xf0\x9f\x98", b"\x82"
    assert not tables.student.adjacent[start[-1], end[0]]
    got, tokens = row_after(tables, f"so{(start + end).decode()}!")
    here = tokens.index(start)
    assert got.certified.lost_mass[here] <= 1 - SURE
    assert masses(got, here, tables)[start] > 0.9


def test_a_boundary_inside_what_may_become_an_added_token_is_not_final() -> None:
    added = AddedTexts([b"<think>", b"<|im|>"])
    text = b"a <th x <|im y <"
    assert added.begun_in(text) == [(2, 5), (8, 12), (15, 16)]
    assert added.begun_in(b"<think>") == [(0, 6)]
    settled = [(1, 3), (3, 4), (5, 7), (10, 11), (12, 14)]
    expected = [(1, 3), (3, 6), (5, 7), (10, 13), (12, 14)]
    assert apart_from_added(settled, added.begun_in(text)) == expected


def test_sync_points_are_not_behind_the_beginning_of_an_added_token() -> None:
    """Qwen 3's "<|im_start|>" is text to Llama 3's tokenizer, which cuts behind "<|"."""
    tables = pair("llama3", "qwen3")
    layout = Realigner(tables).lay_out(tables.student.encoder.encode(b"is not <|im x yes").ids)
    inside = layout.data.index(b"im") + 2
    position = int(np.searchsorted(layout.student_offsets, inside))
    assert layout.student_offsets[position] == inside
    start = int(layout.teacher_offsets[layout.sync[position]])
    assert start <= layout.data.index(b"<")


def test_the_reference_knows_the_way_of_an_added_token_that_has_begun() -> None:
    """ " "" and the token, beside " "<" and "|", where the text ends in the latter."""
    theirs, own = raw_tokenizer("llama3", frozenset({STARTS})), raw_tokenizer("qwen3")
    learnt = theirs.encode(f'it is "{STARTS}" or "<|im_end|>". ' * 40)
    model = NgramTeacher(learnt, theirs)
    said = 'it is "<|'
    window = Window(said.encode(), own.encode(said), tuple(learnt[-3:]))
    ways = [
        [theirs.token_bytes[t] for t in past.tokens] for past in pasts_of(window, model, theirs)
    ]
    assert sorted(way[-1] for way in ways) == [b' "', b"|"]

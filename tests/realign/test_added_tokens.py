"""Added tokens across tokenizers: carried where both sides have them, spelt where one lacks
them. Real tokenizers, and a teacher that is certain of what comes next."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from teacher_proto.types import Level, PositionClass
from tokenizers import Tokenizer

from teacher_server.realign.pair.cache import TableCache
from teacher_server.realign.pair.spelling import as_a_pair
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.requests.planned import needed_rows
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.walk.rows import teacher_rows
from teacher_server.realign.walk.start_finder import StartFinder
from tests.realign.real_tokenizers import pair, tokenizer_file
from tests.realign.toys import bpe_document

CALL = 'Sure.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
CERTAIN = 0.999


def certain(realigner: Realigner, ids: list[int]) -> tuple[RealignedRows, list[int]]:
    """The rows of a teacher that gives CERTAIN to what the rollout goes on with, and what it
    reads."""
    teacher = realigner.tables.teacher
    layout = realigner.lay_out(np.array(ids, np.int32))
    count = len(layout.teacher_ids)
    other = np.full(count, int(np.flatnonzero(teacher.ordinary)[-1]))
    rows = teacher_rows(
        layout.teacher_ids,
        np.stack([layout.teacher_ids, other], 1).astype(np.int32),
        np.tile(np.log([CERTAIN, 1 - CERTAIN]), (count, 1)),
        np.full(count, np.log(CERTAIN)),
    )
    got = realigner.realign(layout, np.arange(len(ids)), rows, top_k=4)
    return got, layout.teacher_ids.tolist()


def check_nothing_is_lost(got: RealignedRows, least: float = 0.97) -> None:
    assert (got.position_class != PositionClass.MASKED).all()
    assert got.certified.lost_mass.max() < 2e-3
    assert np.exp(got.certified.sampled).min() > least


@pytest.mark.parametrize(
    ("student", "teacher"), [("qwen3", "llama3"), ("llama3", "qwen3"), ("qwen3", "gemma3")]
)
def test_a_call_of_a_tool_is_carried_or_spelt_between_real_tokenizers(
    student: str, teacher: str
) -> None:
    """Qwen 3 has a token for <tool_call> and </tool_call>, which are not special; the others
    have none. Each side reads what it would itself have written."""
    ids = {
        name: Tokenizer.from_file(str(tokenizer_file(name))).encode(CALL, add_special_tokens=False)
        for name in (student, teacher)
    }
    got, read = certain(Realigner(pair(student, teacher)), ids[student].ids)
    assert read == ids[teacher].ids
    check_nothing_is_lost(got)


def test_thinking_of_a_teacher_with_the_same_words_reaches_a_student_without_its_tokens() -> None:
    """Qwen 2.5 has Qwen 3's ordinary ids, and no token for thinking."""
    realigner = Realigner(pair("qwen3", "qwen2_5"))
    assert realigner.level is Level.REMAP
    student = Tokenizer.from_file(str(tokenizer_file("qwen3")))
    ids = student.encode("<think>\nWell.\n</think>\n\nYes.").ids
    got, read = certain(realigner, ids)
    assert (
        read
        == Tokenizer.from_file(str(tokenizer_file("qwen2_5")))
        .encode("<think>\nWell.\n</think>\n\nYes.")
        .ids
    )
    check_nothing_is_lost(got)


def toy(texts: dict[str, bool], **flags: Any) -> Vocabulary:
    """The toy tokenizer with further added tokens: text -> whether it is special."""
    document = bpe_document("ab<>tx \u0120", [("a", "b"), ("b", "<")])
    size = 1 + document["added_tokens"][0]["id"]
    document["added_tokens"] += [
        {"id": size + place, "content": text, "special": special, **flags}
        for place, (text, special) in enumerate(texts.items())
    ]
    return read_vocabulary(json.dumps(document))


def realigner_of(student: Vocabulary, teacher: Vocabulary) -> Realigner:
    return Realigner(TableCache(None).get(student, teacher), Level.CROSS)


@pytest.mark.parametrize("of_teacher", [True, False])
@pytest.mark.parametrize("of_student", [True, False])
def test_tokens_of_equal_text_are_each_other_s_whatever_they_are_flagged(
    of_student: bool, of_teacher: bool
) -> None:
    realigner = realigner_of(toy({"<x>": of_student}), toy({"<t>": True, "<x>": of_teacher}))
    student, teacher = realigner.tables.student, realigner.tables.teacher
    ids = [*student.encoder.encode(b"ab").ids.tolist(), student.special_ids["<x>"]]
    got, read = certain(realigner, ids)
    assert read[-1] == teacher.special_ids["<x>"]
    assert got.position_class[-1] == PositionClass.SPECIAL
    assert int(got.certified.ids[-1, 0]) == ids[-1]
    check_nothing_is_lost(got)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("flags", [{}, {"lstrip": True, "rstrip": True}], ids=["plain", "strips"])
def test_a_token_that_one_side_lacks_is_the_text_that_the_other_spells(
    special: bool, flags: dict[str, bool]
) -> None:
    """Its own text alone, also where its tokenizer takes white space beside it along; and text
    before it is cut without it, by whichever side merges across its beginning."""
    with_, without = toy({"<x>": special}, **flags), toy({})
    for student, teacher in ((with_, without), (without, with_)):
        realigner = realigner_of(student, teacher)
        own = realigner.tables.student
        for text in (b"ab <x> ab", b"b<x>ab", b"<x><x>", b"a<x"):
            got, read = certain(realigner, own.encoder.encode(text).ids.tolist())
            other = realigner.tables.teacher
            assert read == other.encoder.encode(text).ids.tolist()
            assert other.encoder.decode(read) == text
            assert got.certified.lost_mass.max() < 2e-3, text
            known = got.position_class != PositionClass.MASKED
            assert (np.exp(got.certified.sampled[known]) > 0.97).all(), text
            assert known[0], text
            # Of the teacher's token the student's first one is certain, wherever it stands; what
            # has begun at the end may still become the token.
            unfinished = len(b"<x") if text.endswith(b"<x") else 0
            assert known.sum() >= len(known) - max(unfinished, 1), text


def test_every_row_that_a_long_spelling_is_followed_over_is_asked_for() -> None:
    """The student begins to type what it has a token for: the teacher may mean that token."""
    token = "<" + "x" * 30 + ">"
    realigner = realigner_of(toy({token: False}), toy({}))
    typed = b"<" + b"x" * 29
    layout = realigner.lay_out(realigner.tables.student.encoder.encode(typed).ids)
    walked = len(realigner.tables.teacher.encoder.encode(token.encode()).ids)
    rows = needed_rows(layout, np.array([0]), realigner.tables.walk_depth)
    assert len(rows) == len(layout.teacher_ids) == walked - 2 > 25


def test_a_row_before_a_token_that_has_begun_is_read_once() -> None:
    """It stands on the rollout's own way, and where the text by itself is cut before the token."""
    tables = pair("llama3", "qwen3")
    layout = Realigner(tables).lay_out(
        tables.student.encoder.encode(b"a turn and <|im_start|> is").ids
    )
    own = layout.teacher_ids
    start = own.tolist().index(tables.teacher.token_bytes.index(b"<|im_start|>"))
    none = np.zeros(len(own))
    rows = teacher_rows(own, own[:, None], none[:, None], none)
    known = PairSegmentation(tables)
    ids = [tables.student.token_bytes[t] for t in layout.student_ids.tolist()]
    positions = np.array([ids.index(b"_start")])
    initial = known.states.initial(layout, positions)
    before = StartFinder(known).find(layout, positions, initial, rows).before
    assert before.row.tolist().count(start) == 1


def test_ends_beginnings_and_padding_are_never_spelt() -> None:
    """Their texts, typed by a student, are text to a teacher that has the tokens."""
    one = toy({"<bos>": True, "<pad>": True, "<|im_end|>": True, "<x>": True})
    student, teacher = as_a_pair(toy({}), one)
    assert teacher.spelt == {one.special_ids["<x>"]}
    assert not student.spelt
    assert set(teacher.specials.values()) == {"</s>", "<bos>", "<pad>", "<|im_end|>"}


def test_very_long_tokens_are_never_spelt() -> None:
    longest, longer = "<" + "x" * 126 + ">", "<" + "x" * 127 + ">"
    one = toy({longest: True, longer: True, "<" + "\u00e9" * 64: True})
    for spelt in (as_a_pair(toy({}), one)[1], as_a_pair(one, toy({}))[0]):
        assert spelt.spelt == {one.special_ids[longest]}


def test_thinking_goes_by_its_role_where_both_have_it_and_is_spelt_where_one_has() -> None:
    both = as_a_pair(toy({"<think>": False}), toy({"[THINK]": True}))
    assert not any(side.spelt for side in both)
    tables = TableCache(None).get(*both)
    (mine,), (theirs,) = (
        [token for token, text in side.specials.items() if text in ("<think>", "[THINK]")]
        for side in both
    )
    assert tables.special_to_teacher[mine] == theirs
    assert tables.special_to_student[theirs] == mine
    # With two marks of one role on both sides, each is the one of its own text.
    names = ("<think>", "<thought>")
    both = as_a_pair(toy(dict.fromkeys(names, True)), toy(dict.fromkeys(reversed(names), True)))
    tables = TableCache(None).get(*both)
    for name in names:
        mine, theirs = (side.special_ids[name] for side in both)
        assert tables.special_to_teacher[mine] == theirs
        assert tables.special_to_student[theirs] == mine
    alone, _ = as_a_pair(toy({"<think>": False}), toy({}))
    assert len(alone.spelt) == 1

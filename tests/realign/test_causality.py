"""No row knows what follows it: rewriting the rest of a rollout leaves it as it was."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from teacher_proto.types import Int32

from benchmarks.realign.compared import contradiction, rows_apart
from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.served import rows_for
from benchmarks.realign.texts import texts
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from tests.realign.real_tokenizers import pair, raw_tokenizer

PAIRS = [("llama3", "qwen3"), ("qwen3", "llama3"), ("gpt4o", "llama3"), ("mistral_nemo", "qwen3")]


def rows_of(
    realigner: Realigner, teacher: NgramTeacher, before: list[int], ids: Int32, position: int
) -> tuple[Layout, RealignedRows]:
    layout = realigner.lay_out(ids)
    rows = rows_for(teacher, before, layout, realigner.tables)
    return layout, realigner.realign(layout, np.array([position]), rows, top_k=64)


@pytest.mark.parametrize(("student_name", "teacher_name"), PAIRS)
def test_rewriting_what_follows_does_not_change_a_row(student_name: str, teacher_name: str) -> None:
    tables = pair(student_name, teacher_name)
    realigner = Realigner(tables)
    draw = random.Random(7)
    apart: list[float] = []
    masked = 0
    for text in texts(1200, tuning=True):
        learnt = tables.teacher.encoder.encode(text.learnt[-40_000:].encode()).ids.tolist()
        teacher = NgramTeacher(learnt, raw_tokenizer(teacher_name))
        ids = tables.student.encoder.encode(text.held_out.encode()).ids
        for _ in range(12):
            position = draw.randrange(4, min(len(ids), 120))
            other = draw.choice(
                ["able to", "'s", " x", "\n\n", "7", "de la", "界", "()", "  y", "é"]
            )
            tail = tables.student.encoder.encode((other + text.held_out[40:60]).encode()).ids
            start = max(0, position - 60)
            kept = ids[start : position + 6]
            rewritten = np.concatenate([ids[start:position], tail])
            at = position - start
            first = rows_of(realigner, teacher, learnt[-3:], kept, at)[1]
            second = rows_of(realigner, teacher, learnt[-3:], rewritten, at)[1]
            found = rows_apart(first, second)
            if found is None:
                masked += 1
            else:
                apart.append(found)
    assert len(apart) >= 16, f"{masked} of the rows are masked"
    assert np.mean(apart) <= 0.002, sorted(apart)[-5:]


def split_words(student: Vocabulary, teacher: Vocabulary, text: str) -> list[str]:
    """Words that are two tokens of the student and one of the teacher."""
    words = [f" {word}" for word in dict.fromkeys(text.split()) if word.isalpha()]
    data = [word.encode() for word in words]
    both = zip(student.encoder.encode_each(data), teacher.encoder.encode_each(data), strict=True)
    return [
        word
        for word, (mine, theirs) in zip(words, both, strict=True)
        if len(mine) == 2 and len(theirs) == 1
    ]


@pytest.mark.parametrize(("student_name", "teacher_name"), [("gpt2", "qwen3"), ("gpt2", "llama3")])
def test_a_word_that_may_still_go_on_is_not_taken_for_finished(
    student_name: str, teacher_name: str
) -> None:
    """ "un" + "able" against "un" + " x", where the teacher has "unable" as one token."""
    tables = pair(student_name, teacher_name)
    realigner = Realigner(tables)
    learnt_text = texts(1200, tuning=True)[0].learnt[-60_000:]
    words = split_words(tables.student, tables.teacher, learnt_text)
    learnt = tables.teacher.encoder.encode(learnt_text.encode()).ids.tolist()
    teacher = NgramTeacher(learnt, raw_tokenizer(teacher_name))
    apart: list[float] = []
    for word in words[:24]:
        place = learnt_text.index(f"{word} ")
        before = tables.student.encoder.encode(learnt_text[max(0, place - 60) : place].encode()).ids
        first, second = tables.student.encoder.encode(word.encode()).ids
        ends = np.concatenate([before, [first, second]]).astype(np.int32)
        stops = np.concatenate([before, [first], tables.student.encoder.encode(b" x").ids])
        got = [
            rows_of(realigner, teacher, learnt[-3:], ids.astype(np.int32), len(before) + 1)[1]
            for ids in (ends, stops)
        ]
        apart.append(contradiction(got[0], got[1]))
    assert len(apart) >= 20
    assert np.mean(apart) <= 0.002, sorted(apart)[-5:]


@pytest.mark.parametrize(
    ("student_name", "teacher_name"),
    [("llama3", "gpt4o"), ("qwen3", "gpt2"), ("gpt2", "qwen3"), ("qwen3", "llama3")],
)
def test_a_row_behind_several_spaces_does_not_know_what_ends_them(
    student_name: str, teacher_name: str
) -> None:
    """ "(4)" and spaces, then a word, a digit, a mark or a line: how many spaces stand by
    themselves depends on it."""
    tables = pair(student_name, teacher_name)
    realigner = Realigner(tables)
    follows = ["word one", "7 rows", "(x)", "\n", "  y"]
    learnt_text = "".join(
        f"({n})\n\n{n} rows. (x){' ' * n}word{' ' * n}{n % 10} (x)\n{' ' * n}(x)\n\nword one\n"
        for n in range(2, 9)
    )
    learnt = tables.teacher.encoder.encode((learnt_text * 8).encode()).ids.tolist()
    teacher = NgramTeacher(learnt, raw_tokenizer(teacher_name))
    for spaces in ("  ", "     ", "\n\n", "\n   "):
        head = tables.student.encoder.encode(f"word (4){spaces}".encode()).ids
        both = []
        for text in follows:
            tail = tables.student.encoder.encode(text.encode()).ids
            ids = np.concatenate([head, tail])
            both.append(rows_of(realigner, teacher, learnt[-3:], ids, len(head))[1])
        for first, second in itertools.combinations(both, 2):
            assert contradiction(first, second) <= 0.002
            found = rows_apart(first, second)
            assert found is None or found <= 0.002

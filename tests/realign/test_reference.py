"""The references that realignment is judged by, held against one another.

``reference`` draws texts, ``exhaustive`` reads all of a small teacher's, ``enumeration``
follows paths and settles tokens. They share no code but what says which text counts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.reference.enumeration import enumerate_paths
from benchmarks.realign.reference.exhaustive import exhaustive
from benchmarks.realign.reference.pasts import Window, pasts_of
from benchmarks.realign.reference.raw_tokenizer import RawTokenizer
from benchmarks.realign.reference.rollout import Rollout
from benchmarks.realign.reference.specification import Reference
from benchmarks.realign.reference.truth import Truth
from benchmarks.realign.texts import texts
from teacher_server.realign.pair.vocabulary import read_vocabulary
from tests.realign.real_tokenizers import raw_tokenizer, vocabulary
from tests.realign.toys import SPACE, bpe_document, random_merges

LETTERS = f"abc{SPACE}"
LONGEST = 4


def _written(tokenizer: RawTokenizer, before: int, token: int) -> bool:
    return tokenizer.encode(tokenizer.decode([before, token]).decode()) == [before, token]


class EndingTeacher:
    """Writes LONGEST tokens at most and then stops, with a full stop that nothing joins; no
    token that its tokenizer would not write after the one before."""

    def __init__(self, tokenizer: RawTokenizer, seed: int) -> None:
        (self._stop,) = tokenizer.encode(".")
        rng = np.random.default_rng(seed)
        tokens = [token for token, data in enumerate(tokenizer.token_bytes) if data]
        self._rows = {}
        for before in [*tokens, -1]:
            kept = [one for one in tokens if before < 0 or _written(tokenizer, before, one)]
            masses = rng.dirichlet(np.full(len(kept), 0.7)).tolist()
            self._rows[before] = dict(zip(kept, masses, strict=True))

    def row(self, before: Sequence[int]) -> dict[int, float]:
        if before and before[-1] == self._stop:
            return {}
        if len(before) >= LONGEST:
            return {self._stop: 1.0}
        return self._rows[before[-1] if before else -1]

    def draw(self, before: Sequence[int], rng: random.Random) -> int:
        row = self.row(before) or {self._stop: 1.0}
        return rng.choices(list(row), list(row.values()))[0]

    def support(self, before: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As the enumeration asks for it, which reads on behind the end."""
        row = self.row(before) or {self._stop: 1.0}
        return np.array(list(row), np.int64), np.array(list(row.values()))


def toy_file(folder: Path, name: str, draw: random.Random) -> Path:
    document = bpe_document(f"{LETTERS}.", random_merges(draw, LETTERS, 4))
    file = folder / f"{name}.json"
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize("number", range(3))
def test_toys_against_all_texts_there_are(number: int, tmp_path: Path) -> None:
    """Draws agree with all texts within chance, also where the text so far may be cut in
    several ways; the enumeration agrees to rounding where it is cut in one."""
    draw = random.Random(number)
    files = [toy_file(tmp_path, name, draw) for name in ("student", "teacher")]
    student, teacher = (RawTokenizer(file) for file in files)
    vocabularies = [read_vocabulary(file.read_bytes()) for file in files]
    model = EndingTeacher(teacher, number)
    reference = Reference(model, student, teacher)
    cuts: list[int] = []
    excess: list[float] = []
    enumerated = 0
    for said in ("", "a", "b", "ab", "ca", "bc", "a b", "cab", "abc", " a", "c c"):
        window = Window(said.encode(), student.encode(said), ())
        wanted = exhaustive(window, model, student, teacher)
        if not wanted:
            continue  # the teacher never writes it
        truth = reference.truth(window, random.Random(5), draws=1500)
        assert truth is not None
        assert truth.mass.keys() <= wanted.keys()
        excess.append(truth.excess(wanted))
        assert sum(truth.mass.values()) + truth.lost == pytest.approx(1.0)
        pasts = pasts_of(window, model, teacher)
        cuts.append(len(pasts))
        if len(pasts) > 1 or said.endswith(" "):
            continue
        found = enumerate_paths(
            model, (), window.said, window.student_ids, *vocabularies,
            open_share=0.0, most=200_000,
        )  # fmt: skip
        assert found is not None
        apart = [abs(found.mass.get(one, 0.0) - wanted[one]) for one in wanted if one >= 0]
        # It leaves out paths of less than 1e-8.
        assert max(apart) <= 1e-6
        enumerated += max(apart) <= 1e-12
    assert max(cuts) > 1
    assert enumerated >= 2
    assert abs(float(np.mean(excess))) <= 0.01, excess
    assert max(map(abs, excess)) <= 0.05


def learnt_pair(student: str, teacher: str, name: str) -> tuple[NgramTeacher, Rollout, Reference]:
    own, theirs = raw_tokenizer(student), raw_tokenizer(teacher)
    (text,) = texts(800, tuning=True, names=[name])
    learnt = theirs.encode(text.learnt[-40_000:])
    model = NgramTeacher(learnt, theirs)
    rollout = Rollout(text.held_out, own, theirs, tuple(learnt[-3:]))
    return model, rollout, Reference(model, own, theirs)


@pytest.mark.parametrize(
    ("student", "teacher", "name"),
    [
        ("llama3", "qwen3", "prose"),
        ("llama3", "deepseek_v3", "rtl"),
        ("gpt4o", "gemma2", "emoji"),
    ],
)
def test_draws_agree_with_the_enumeration_on_real_pairs(
    student: str, teacher: str, name: str
) -> None:
    """Where both can see: the enumeration knows one way to cut the text so far, and settles."""
    model, rollout, reference = learnt_pair(student, teacher, name)
    excess = []
    for position in random.Random(2).sample(range(4, len(rollout.student_ids)), 40):
        window = rollout.window(position)
        if len(pasts_of(window, model, rollout.teacher)) > 1:
            continue
        found = enumerate_paths(
            model, window.before, window.said, window.student_ids,
            vocabulary(student), vocabulary(teacher),
            open_share=0.005, most=1500,
        )  # fmt: skip
        truth = reference.truth(window, random.Random(position), draws=300)
        if found is not None and truth is not None:
            excess.append(truth.excess(found.mass))
        if len(excess) == 4:
            break
    assert len(excess) >= 3
    assert float(np.mean(excess)) <= 0.005, excess
    assert max(excess) <= 0.02


def test_text_may_end_inside_a_character() -> None:
    """The first two bytes of a character are other tokens alone than before its last."""
    own, theirs = raw_tokenizer("llama3"), raw_tokenizer("gpt4o")
    text = "\u627e\u5230\u4e86\u4e22\u5931\u7684\u94a5\u5319\u3002"
    learnt = theirs.encode(text * 4)
    model = NgramTeacher(learnt, theirs)
    said = text.encode()[:11]
    ids = own.encode(text)
    count = 0
    while len(own.decode(ids[:count])) < len(said):
        count += 1
    window = Window(own.decode(ids[:count]), ids[:count], tuple(learnt[-3:]))
    assert window.said == said
    truth = Reference(model, own, theirs).truth(window, random.Random(1))
    found = enumerate_paths(
        model, learnt[-3:], said, ids[:count], vocabulary("llama3"), vocabulary("gpt4o"),
        open_share=0.01, most=2000,
    )  # fmt: skip
    assert truth is not None
    assert found is not None
    assert truth.mass[ids[count]] > 0.9
    assert found.mass[ids[count]] > 0.9


def test_a_token_that_reaches_across_the_position_is_another_past() -> None:
    """Seven spaces and a digit are cut otherwise than seven spaces and a word."""
    qwen = raw_tokenizer("qwen3")
    learnt = qwen.encode("x = [\n        12,\n        word,\n" * 60)
    model = NgramTeacher(learnt, qwen)
    (said,) = (b"x = [\n" + b" " * 7,)
    window = Window(said, raw_tokenizer("llama3").encode(said.decode()), tuple(learnt[-3:]))
    cuts = {past.tokens for past in pasts_of(window, model, qwen)}
    assert len(cuts) >= 2


def test_a_word_of_two_characters_is_cut_apart_once_the_next_joins_the_second() -> None:
    """One token by itself, and two before a character that has a token with the second."""
    qwen = raw_tokenizer("qwen3")
    written = "\u8c08\u8d77\u4e86"
    assert [len(qwen.decode([one])) // 3 for one in qwen.encode(written)] == [1, 2]
    assert len(qwen.encode(written[:2])) == 1
    learnt = qwen.encode(f"\u624b\u673a{written}\u90a3\u6b21\u3002" * 60)
    model = NgramTeacher(learnt, qwen)
    said = "\u624b\u673a" + written[:2]
    window = Window(said.encode(), raw_tokenizer("llama3").encode(said), tuple(learnt[-3:]))
    (likely,) = [past for past in pasts_of(window, model, qwen) if past.mass > 0.01]
    assert qwen.decode(list(likely.tokens)).decode() == said[:-1]


def test_excess_is_zero_for_right_values_and_the_distance_for_wrong_ones() -> None:
    draw = random.Random(3)
    right = {1: 0.6, 2: 0.3, 3: 0.1}
    zero, far = [], []
    for _ in range(400):
        halves = []
        for _ in range(2):
            drawn = draw.choices(list(right), list(right.values()), k=200)
            halves.append({one: drawn.count(one) / 200 for one in right})
        truth = Truth(right, 0.0, 0.0, (halves[0], halves[1]))
        zero.append(truth.excess(right))
        far.append(truth.excess({1: 0.8, 2: 0.1, 3: 0.1}))
    assert abs(float(np.mean(zero))) < 0.002
    assert float(np.mean(far)) == pytest.approx(0.2, abs=0.004)

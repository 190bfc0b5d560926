"""The languages of the laboratory: what is written is right, and what is wrong is found."""

from __future__ import annotations

import random
import re
from itertools import permutations

import pytest
from pydantic import TypeAdapter

from student_trainer.settings.kinds import TaskConfigs
from student_trainer.study.lab.document import settings_of
from student_trainer.study.lab.language.digits import SumsInDigitsTask
from student_trainer.study.lab.language.order import RANKS, OrderTask
from student_trainer.study.lab.language.sums import MODULUS, VALUES, SumsTask
from student_trainer.study.lab.language.sums_order import SumsAndOrderTask
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.tokenizer import make_tokenizer
from student_trainer.study.lab.language.words import (
    ASIDES,
    ITEMS,
    LEXICON,
    SLOT_OF,
    SYNONYMS,
    Response,
)
from student_trainer.tasks import Task
from student_trainer.verification.process import VerifierProcess

TASKS: list[LabTask] = [
    SumsTask(items=4),
    SumsTask(items=16),
    OrderTask(items=1),
    OrderTask(items=8),
    SumsAndOrderTask(items=4),
]
HOSTILE = ["", " ", "\x00", "answer", "answer answer 3", "9" * 10_000, "apple " * 50_000, "\ud800",
           "²", "answer 1e400", "100 " * 10_000, "apple has 12 plus 0"]  # fmt: skip


def text(response: Response) -> str:
    return "".join(f" {word}" for word in response.words)


def test_no_word_is_in_two_lists() -> None:
    assert len(LEXICON) == 8 * 7
    assert all(len(words) == SYNONYMS for words in LEXICON.values())
    assert len(SLOT_OF) == 8 * 7 * SYNONYMS
    assert not SLOT_OF.keys() & {*ITEMS, "answer"}


def test_words_are_drawn_by_zipfs_law() -> None:
    response = Response(3, random.Random(1))
    for _ in range(20_000):
        response.say("plus")
    counts = [response.words.count(word) for word in LEXICON[3, "plus"]]
    shares = [rank**-1.2 for rank in range(1, 17)]
    expected = [20_000 * share / sum(shares) for share in shares]
    # Pearson's statistic; with 15 degrees of freedom it is above 44 once in 10,000 draws.
    assert sum((a - b) ** 2 / b for a, b in zip(counts, expected, strict=True)) < 44


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.items}")
def test_what_is_written_is_right(task: LabTask) -> None:
    draw = random.Random(5)
    for _ in range(200):
        row = task.draw_row(draw, task.items)
        response = task.write(row, draw, decided=2.0, slip=0.0)
        verdict = task.verify(row, text(response))
        assert verdict.right
        assert verdict.values == {"steps_right": 1.0}
        assert 0.0 not in response.weights
        assert len(response.words) < task.longest_response


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.items}")
def test_a_decided_word_that_is_changed_is_found(task: LabTask) -> None:
    """Each number and each item once, in turn."""
    draw = random.Random(6)
    row = task.draw_row(draw, task.items)
    response = task.write(row, draw, decided=2.0, slip=0.0)
    said = response.words.index("answer")
    for place, weight in enumerate(response.weights):
        if weight != 2.0 or place == said:
            continue
        word = response.words[place]
        other = next(o for o in ("lamp", "key", "19", "0") if alike(o, word))
        changed = [*response.words[:place], other, *response.words[place + 1 :]]
        verdict = task.verify(row, " " + " ".join(changed))
        assert verdict.right == (place < said)
        assert (verdict.values["steps_right"] < 1) == (place < said)


def alike(other: str, word: str) -> bool:
    """Whether it is another word of the same kind: an item or a number."""
    return other != word and other.isdigit() == word.isdigit()


def test_all_orders_of_a_sum() -> None:
    """Every sequence of three steps over the items of a prompt, against sums done here."""
    task = SumsTask(items=3)
    items = ["apple", "key", "pen"]
    row = {"prompt": "S0 apple key pen =", "style": 0, "items": items}
    total = (VALUES["apple"] + VALUES["key"] + VALUES["pen"]) % MODULUS
    for chosen in permutations(["apple", "key", "pen", "spoon"], 3):
        running, words = 0, []
        for item in chosen:
            after = (running + VALUES[item]) % MODULUS
            words += [item, str(VALUES[item]), str(running), str(after)]
            running = after
        verdict = task.verify(row, " ".join([*words, "answer", str(running)]))
        assert verdict.right == (running == total)
        known = sum(item in items for item in chosen)
        assert verdict.values["steps_right"] == pytest.approx(known / 3)


def test_all_lists_of_an_order() -> None:
    """Every order of three items and every list of a step, against sorting done here."""
    task = OrderTask(items=3)
    items = ["apple", "key", "pen"]
    ranked = sorted(items, key=RANKS.__getitem__)
    row = {"prompt": "O0 apple key pen =", "style": 0, "items": items}
    done = LEXICON[0, "done"][0]
    for order in permutations(items):
        for last in permutations(items):
            first = sorted(order[:2], key=RANKS.__getitem__)
            words = [done, order[0], order[0], done, order[1], *first, done, order[2], *last]
            verdict = task.verify(row, " ".join([*words, "answer", *last]))
            assert verdict.right == ([*last] == ranked)
            assert verdict.values["steps_right"] == pytest.approx(1 if verdict.right else 2 / 3)
    twice = [done, "apple", "apple", done, "apple", "apple", "apple"]
    verdict = task.verify(row, " ".join([*twice, "answer", *ranked]))
    assert verdict.right
    assert verdict.values["steps_right"] == pytest.approx(1 / 3)


def test_a_list_goes_on_by_the_rule_after_a_slip() -> None:
    """What is left of the sorted list after a wrong word, against sets of items done here."""
    task, draw, kinds = OrderTask(items=6), random.Random(9), set[str]()
    for _ in range(500):
        row = task.draw_row(draw, 6)
        response = task.write(row, draw, decided=2.0, slip=1.0)
        wrong_at = response.weights.index(0.0)
        start = max(
            place
            for place, word in enumerate(response.words[:wrong_at])
            if SLOT_OF.get(word) == "has"
        )
        stop = next(
            place
            for place, word in enumerate(response.words)
            if place > wrong_at and SLOT_OF.get(word) == "stop"
        )
        named = [
            response.words[place + 1]
            for place, word in enumerate(response.words[:start])
            if SLOT_OF.get(word) == "done"
        ]
        right = sorted(named, key=RANKS.__getitem__)
        new, wrong = named[-1], response.words[wrong_at]
        due = right[wrong_at - start - 1 :]
        if wrong not in due:
            kind, left = "strange", set(due[1:])
        elif wrong == new:
            kind, left = "early", {*due} - {new}
        else:
            kind, left = "skipped", {one for one in due if RANKS[one] > RANKS[wrong]}
            left |= {new} & {*due}
        kinds.add(kind)
        assert response.words[start + 1 : wrong_at] == right[: wrong_at - start - 1]
        assert response.words[wrong_at + 1 : stop] == sorted(left, key=RANKS.__getitem__)
    assert kinds == {"strange", "early", "skipped"}


def test_digits_change_the_tokens_and_not_the_texts() -> None:
    whole, digits = SumsTask(items=4), SumsInDigitsTask(items=4)
    row = whole.draw_row(random.Random(3), 4)
    assert row == digits.draw_row(random.Random(3), 4)
    texts = [
        text(task.write(row, random.Random(4), decided=1.0, slip=0.0)) for task in (whole, digits)
    ]
    assert texts[0] == texts[1]
    pieces = []
    for task in (whole, digits):
        tokenizer = make_tokenizer(task.numbers)
        ids = tokenizer.encode(" 17 5", add_special_tokens=False)
        pieces.append([tokenizer.decode([one]) for one in ids])
    assert pieces == [[" 17", " 5"], [" 1", "7", " 5"]]


def test_a_student_of_both_learns_from_the_texts_of_each() -> None:
    both, draw = SumsAndOrderTask(items=4), random.Random(7)
    own = {"sums": SumsTask(items=3), "order": OrderTask(items=3)}
    drawn = []
    for _ in range(400):
        row = both.draw_row(draw, 3)
        response = text(both.write(row, draw, decided=2.0, slip=0.0))
        # What one task holds for right, the other does not.
        assert {name for name, task in own.items() if task.verify(row, response).right} == {
            row["task"]
        }
        assert row["prompt"][0] == {"sums": "S", "order": "O"}[row["task"]]
        drawn.append(row["task"])
    assert 150 < drawn.count("sums") < 250
    assert make_tokenizer(both.numbers).get_vocab() == make_tokenizer(OrderTask.numbers).get_vocab()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.items}")
@pytest.mark.parametrize("response", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_is_judged(task: LabTask, response: str) -> None:
    row = task.draw_row(random.Random(2), task.items)
    verdict = task.verify(row, response)
    assert verdict.score == 0
    assert verdict.values["steps_right"] == 0


def test_what_follows_the_answer_is_wrong() -> None:
    task = SumsTask(items=2)
    row = task.draw_row(random.Random(3), 2)
    right = text(task.write(row, random.Random(4), decided=1.0, slip=0.0))
    assert task.verify(row, right).right
    assert not task.verify(row, right + " 3").right
    assert not task.verify(row, right + right).right


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.items}")
def test_one_step_of_a_slip_is_wrong_and_the_rest_follows(task: LabTask) -> None:
    draw = random.Random(8)
    for _ in range(100):
        row = task.draw_row(draw, task.items)
        response = task.write(row, draw, decided=2.0, slip=1.0)
        assert response.weights.count(0.0) == 1
        verdict = task.verify(row, text(response))
        assert not verdict.right
        assert verdict.values["steps_right"] == pytest.approx(1 - 1 / task.items)


def test_prompts_are_of_the_seed_and_in_one_split() -> None:
    task = SumsTask(items=2, count=300, held_out=50)

    def texts(split: str, one: LabTask = task) -> list[str]:
        return [row["prompt"] for _, row in one.prompts(split, None)]  # type: ignore[arg-type]

    train, held_out = texts("train"), texts("held_out")
    assert (len(train), len(held_out)) == (300, 50)
    assert len({*train, *held_out}) == 350
    assert texts("train") == train
    assert texts("train", SumsTask(items=2, count=300, held_out=50, seed=1)) != train
    assert all(re.fullmatch(r"S[0-7]( [a-z]+){2} =", prompt) for prompt in train)


def test_a_step_has_up_to_three_asides() -> None:
    assert sum(ASIDES) == pytest.approx(1)
    response = Response(0, random.Random(1))
    counts = []
    for _ in range(4000):
        before = len(response.words)
        response.begin_step()
        counts.append(len(response.words) - before - 1)
    for number, share in enumerate(ASIDES):
        assert counts.count(number) / 4000 == pytest.approx(share, abs=0.04)


def test_a_run_has_it_as_a_task_and_judges_it_in_a_process() -> None:
    """With the settings that ``lab.json`` has."""
    named: dict[str, Task] = TypeAdapter(TaskConfigs).validate_python(
        {"sums": settings_of(SumsTask(items=3))}
    )
    assert named["sums"] == SumsTask(items=3)
    task = SumsTask(items=3)
    row = task.draw_row(random.Random(3), 3)
    right = text(task.write(row, random.Random(4), decided=1.0, slip=0.0))
    process = VerifierProcess(named, [], seconds=60.0, memory_bytes=2**28)
    try:
        judged = [process.judge("sums", row, response) for response in (right, right + " 3")]
    finally:
        process.close()
    assert [one.score for one in judged] == [1.0, 0.0]
    assert [one.values["steps_right"] for one in judged] == [1.0, 1.0]

"""Sorting by insertion: every item has a rank, which is not in the prompt; a response puts the
items into a list one by one, and writes the list out after each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from student_trainer.study.lab.language.sums import SumsTask
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.words import (
    ANSWER,
    ASIDES,
    ITEMS,
    SLOT_OF,
    STYLES,
    Response,
)
from student_trainer.tasks.base import Row, Verdict

RANKS = {
    item: rank
    for rank, item in enumerate(random.Random("ranks of the items").sample(ITEMS, len(ITEMS)))
}


class OrderTask(LabTask):
    """Lists of items to sort, such as ``O3 apple lamp boat desk =``. A step names an item that is
    left, and the sorted list of all items named so far. The responses to learn from take the
    items in the prompt's order; any order is right."""

    name: ClassVar[str] = "order"
    # None is in its texts; models of both tasks so have the same tokenizer.
    numbers: ClassVar[range] = SumsTask.numbers

    @property
    def longest_response(self) -> int:
        """As ``LabTask.longest_response``: a step has at most eight words besides its list."""
        lists = self.items * (self.items + 1) // 2
        return (5 + len(ASIDES) - 1) * self.items + lists + 1 + self.items + 1

    def draw_row(self, draw: random.Random, items: int) -> Row:
        """As ``LabTask.draw_row``; at most 48 items."""
        style, chosen = draw.randrange(STYLES), draw.sample(ITEMS, items)
        return {"prompt": f"O{style} {' '.join(chosen)} =", "style": style, "items": chosen}

    def write(self, row: Row, draw: random.Random, *, decided: float, slip: float) -> Response:
        """As ``LabTask.write``. A slip is one wrong item in the list of a step."""
        response = Response(row["style"], draw, decided)
        items = row["items"]
        slip_at = draw.randrange(len(items)) if draw.random() < slip else -1
        listed: list[str] = []
        for place, item in enumerate(items):
            response.begin_step()
            response.say("done")
            response.state(item)
            response.say("has")
            wrong_at = draw.randrange(len(listed) + 1) if place == slip_at else -1
            listed = _write_list(response, listed, item, items, wrong_at)
            response.say("stop")
        response.state(ANSWER)
        for item in listed:
            response.state(item)
        return response

    def verify(self, row: Row, response: str) -> Verdict:
        """1 where the response ends in the word for the answer, said once, and the sorted list.

        ``values["steps_right"]`` is the share of right steps: an item of the prompt that was
        left, and the list that the step before wrote, with this item before the first one that
        ranks above it.
        """
        words = response.split()
        good, count = self._steps_right(row["items"], words)
        right = sorted(row["items"], key=RANKS.__getitem__)
        ends = words.count(ANSWER) == 1 and words[words.index(ANSWER) + 1 :] == right
        share = good / max(count, len(row["items"]))
        return Verdict(float(ends), values={"steps_right": share})

    def _steps_right(self, items: list[str], words: list[str]) -> tuple[int, int]:
        """How many steps are right, and how many there are."""
        steps: list[list[str]] = []
        for word in words:
            if word == ANSWER:
                break
            if SLOT_OF.get(word) == "done":
                steps.append([])
            elif word in RANKS and steps:
                steps[-1].append(word)
        left, listed, good = set(items), list[str](), 0
        for named in steps:
            item, after = named[0] if named else "", named[1:]
            good += item in left and after == inserted(listed, item)
            left.discard(item)
            listed = after
        return good, len(steps)


def inserted(listed: Sequence[str], item: str) -> list[str]:
    """The list with the item before the first one that ranks above it."""
    above = (place for place, other in enumerate(listed) if RANKS[other] > RANKS[item])
    place = next(above, len(listed))
    return [*listed[:place], item, *listed[place:]]


def _write_list(
    response: Response, before: Sequence[str], item: str, items: Sequence[str], wrong_at: int
) -> list[str]:
    """Writes the list with the item put in, word by word.

    Args:
        wrong_at: the place of a wrong word; -1 for none. What follows it goes on by the rule,
            from the list before and from what of it has been written.

    Returns:
        The list as it was written.
    """
    ahead, put, written = list(before), False, list[str]()
    while ahead or not put:
        due = not put and (not ahead or RANKS[ahead[0]] > RANKS[item])
        right = item if due else ahead[0]
        word = right
        if wrong := len(written) == wrong_at:
            others = [other for other in items if other != right]
            word = response.draw.choice(others or [other for other in ITEMS if other != right])
        written.append(word)
        response.state(word, wrong=wrong)
        if wrong and word in ahead:
            del ahead[: ahead.index(word) + 1]
        elif due or (wrong and word == item and not put):
            put = True
        else:
            del ahead[0]
    return written

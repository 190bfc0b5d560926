"""Writes responses by continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch

from student_trainer.rollout.base import Rollout
from student_trainer.rollout.drawing import Drawing, Drawn
from student_trainer.rollout.engine import ResponseKey
from student_trainer.rollout.slots.slots import Read, Slots
from student_trainer.student.model import Student

# Takes rollouts as they end, as (place in the result, rollout), in ascending order of places.
Take = Callable[[list[tuple[int, Rollout]]], None]
# Prompts enter once this share of the slots is free: reading them costs about as much as a token
# of every slot.
FREE = 1 / 8


@torch.no_grad()
def write_continuously(
    student: Student,
    keys: Sequence[ResponseKey],
    drawing: Drawing,
    take: Take,
) -> None:
    """Writes the responses of ``keys`` on the lines of ``drawing``, each in a slot.

    Which prompts enter together depends on the responses alone.

    Args:
        take: called with the rollouts that end at one token.

    Raises:
        LsmError: the student's logits are not finite.
    """
    _Writer(student, keys, drawing, take).write()


class _Writer:
    """The responses that are written: of each slot its place in ``keys``, its line, and the token
    that it goes on with."""

    def __init__(
        self, student: Student, keys: Sequence[ResponseKey], drawing: Drawing, take: Take
    ) -> None:
        self._keys = keys
        self._drawing = drawing
        self._take = take
        self._slots = Slots(student, drawing.lines)
        self._begun = 0
        self._held: Read | None = None
        self._places: list[int] = []
        self._lines: list[int] = []
        self._tokens = torch.zeros(0, dtype=torch.int64, device=student.device)

    def write(self) -> None:
        block = max(int(self._drawing.lines * FREE), 1)
        while self._places or self._begun < len(self._keys):
            waiting = len(self._keys) - self._begun
            free = self._drawing.lines - len(self._places)
            if waiting and (free >= min(block, waiting) or not self._places):
                self._enter(min(free, waiting))
            else:
                self._go_on()

    def _room(self, slots: int) -> int:
        """How many slots may be taken together from now on, of which ``slots`` are."""
        return min(self._drawing.lines, slots + len(self._keys) - self._begun)

    def _enter(self, count: int) -> None:
        """Begins the next ``count`` responses: their first tokens are drawn, and those that go on
        get slots."""
        room, first = self._room(len(self._places)), self._begun
        self._begun += count
        places, lines = range(first, self._begun), self._drawing.free_lines()[:count]
        for place, line in zip(places, lines, strict=True):
            self._drawing.begin(line, self._keys[place])
        read = self._read(places)
        logits = [its.logits[prompt].expand(len(of_it), -1) for its, prompt, of_it in read]
        drawn = self._drawing.draw(lines, torch.cat(logits))
        self._give_out(places, lines, drawn)
        over = frozenset(drawn.over)
        for its, prompt, of_it in read:
            if staying := [place for place in of_it if place - first not in over]:
                self._slots.enter(its, prompt, len(staying), room=room)
        stay = [nth for nth in range(count) if nth not in over]
        self._places += [places[nth] for nth in stay]
        self._lines += [lines[nth] for nth in stay]
        self._tokens = torch.cat([self._tokens, drawn.tokens[stay]])
        last, going_on = read[-1], self._prompt_at(self._begun)
        self._held = last[0].last() if going_on == self._prompt_at(self._begun - 1) else None

    def _read(self, places: range) -> list[tuple[Read, int, list[int]]]:
        """Reads the prompts of these places, each once, also where its group entered in part
        before. Returns for each where it was read, and its places."""
        groups = [list(of_it) for _, of_it in groupby(places, key=self._prompt_at)]
        held = [] if self._held is None else [(self._held, 0)]
        fresh = groups[len(held) :]
        if fresh:
            read = self._slots.read([self._keys[of_it[0]].prompt.token_ids for of_it in fresh])
            held += [(read, nth) for nth in range(len(fresh))]
        return [(its, nth, of_it) for (its, nth), of_it in zip(held, groups, strict=True)]

    def _prompt_at(self, place: int) -> str:
        return self._keys[place].prompt.prompt_id if place < len(self._keys) else ""

    def _go_on(self) -> None:
        """Draws the next token of every response; those that end leave their slots."""
        drawn = self._drawing.draw(self._lines, self._slots.step(self._tokens))
        self._tokens = drawn.tokens
        if not drawn.over:
            return
        self._give_out(self._places, self._lines, drawn)
        kept = len(self._places) - len(drawn.over)
        order = self._slots.leave(drawn.over, room=self._room(kept))
        self._places = [self._places[slot] for slot in order]
        self._lines = [self._lines[slot] for slot in order]
        self._tokens = drawn.tokens[order]

    def _give_out(self, places: Sequence[int], lines: Sequence[int], drawn: Drawn) -> None:
        """Takes the responses that have ended off their lines."""
        finished = frozenset(drawn.finished)
        found = {
            places[nth]: self._drawing.take(lines[nth], finished=nth in finished)
            for nth in drawn.over
        }
        if found:
            self._take(sorted(found.items()))

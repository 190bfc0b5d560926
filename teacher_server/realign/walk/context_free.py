"""What one teacher's rows behind single tokens have told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32

from teacher_server.realign.pair.tables import SETTLED_LEAK, PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS, followed
from teacher_server.realign.segmentation.pair_segmentation import LearntPair
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.extension_shares import LEAST_LOOKED_UP, shares_behind
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]


class ContextFreeRows:
    """What one teacher's rows behind single tokens have told of a pair; filled as it is used.

    A row of the teacher after (a beginning and) the token alone depends on the teacher
    only, never on a rollout: whenever it is asked for, the answer is the same.

    Attributes:
        known: bool [V_T].
        leak: float32 [V_T], where known.
        across: bool [V_T], a leak of student tokens that the teacher begins otherwise.
    """

    def __init__(self, tables: PairTables) -> None:
        self.known: Bool = np.zeros(tables.teacher.size, np.bool_)
        self.leak: Float32 = np.zeros(tables.teacher.size, np.float32)
        self.across: Bool = np.zeros(tables.teacher.size, np.bool_)
        self._rows: dict[int, tuple[Int64, Float64]] = {}
        self._rests: dict[tuple[int, int], bool] = {}
        self._undone: dict[tuple[int, int], bool] = {}
        self._closed: dict[tuple[int, int, int], int] = {}
        self._generation = 0

    def leave_open(self, tokens: Int64) -> None:
        """Counts tokens [n] as going on, whatever their rows."""
        self.leak[tokens] = 1.0
        self.known[tokens] = True

    def learn(self, tokens: Int64, ids: Int64, log_probs: Float64, pair: LearntPair) -> None:
        """Args: tokens [n]; ids, log_probs [n, M], of the rows behind them alone."""
        found = shares_behind(tokens, ids, log_probs, pair)
        for token, row, values in zip(tokens.tolist(), ids, log_probs, strict=True):
            kept = values > np.log(LEAST_LOOKED_UP)
            self._rows[token] = row[kept], values[kept]
        self.leak[tokens] = found.longer
        self.across[tokens] = found.across > SETTLED_LEAK
        self.known[tokens] = True

    def share_of(self, token: int, then: int) -> float:
        """Of the mass behind the known token, what goes on with ``then``, or the most that
        this can be."""
        row = self._rows.get(token)
        if row is None:
            return 1.0
        ids, log_probs = row
        return float(np.exp(log_probs[ids == then]).sum()) or LEAST_LOOKED_UP

    def rest_goes_on(self, token: int, skip: int, pair: LearntPair) -> bool:
        """Whether the known token without its first ``skip`` bytes goes on, or is cut
        otherwise, with more than SETTLED_LEAK; so does one whose row is not finite."""
        key = token, skip
        if key not in self._rests:
            row = self._rows.get(token)
            leak = 1.0
            if row is not None:
                one = np.array([token])
                shares = shares_behind(one, row[0][None], row[1][None], pair, skip)
                leak = float(shares.longer[0])
            self._rests[key] = leak > SETTLED_LEAK
        return self._rests[key]

    def undone(self, token: int, state: int, pair: LearntPair) -> bool:
        """Whether what follows the known token may yet make a state possible, whose text
        alone the student would have cut otherwise, with more than SETTLED_LEAK."""
        self._forget(pair)
        key = token, state
        if key not in self._undone:
            share = 0.0
            row = self._rows.get(token)
            if row is not None:
                ids, log_probs = row
                here = np.full(len(ids), state)
                joins = pair.states.joins(here[:1], ids[None])[0]
                after = pair.states.step(here[joins], ids[joins])
                possible = pair.states.answer(after) != CONTRADICTS
                share = float(np.exp(log_probs[joins][possible]).sum())
            self._undone[key] = share > SETTLED_LEAK
        return self._undone[key]

    def closed(self, before: int, token: int, state: int, pair: LearntPair) -> int:
        """The student's token where the known token ends several spaces that the teacher
        begins with ``before`` (-1: nothing): what nearly all of that follows gives which the
        teacher writes behind both; else OPEN."""
        self._forget(pair)
        key = before, token, state
        if key not in self._closed:
            row = self._rows.get(token)
            self._closed[key] = OPEN if row is None else _answer_behind(*key, *row, pair)
        return self._closed[key]

    def _forget(self, pair: LearntPair) -> None:
        """States have other numbers in each generation."""
        if self._generation != pair.states.generation:
            self._undone.clear()
            self._closed.clear()
            self._generation = pair.states.generation


def _answer_behind(
    before: int, token: int, state: int, ids: Int64, log_probs: Float64, pair: LearntPair
) -> int:
    """As ``ContextFreeRows.closed``; ids, log_probs [n] are the row behind the token alone."""
    states, teacher = pair.states, pair.tables.teacher
    path = [one for one in (before, token) if one >= 0]
    after = states.step(np.full(len(ids), state), ids)
    answers = states.answer(after)
    written = np.zeros(len(ids), np.bool_)
    for index, spaces in enumerate(states.spaces(after).tolist()):
        # More spaces are written or not by what follows in turn, and may have to be open.
        kinds = followed(teacher, [*path, int(ids[index])], spaces=spaces)
        written[index] = kinds != 0
        if spaces and kinds:
            answers[index] = states.answer_before(int(after[index]), kinds)
    answers, mass = answers[written], np.exp(log_probs[written])
    found, inverse = np.unique(answers, return_inverse=True)
    shares = np.bincount(inverse, mass, len(found))
    total = float(shares.sum())
    if total < SETTLED_LEAK or shares.max() < (1 - SETTLED_LEAK) * total:
        return OPEN
    answer = int(found[shares.argmax()])
    return answer if answer != OPEN and states.ends_within(state, answer) else OPEN

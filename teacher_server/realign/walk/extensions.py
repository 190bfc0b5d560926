"""How often a teacher token goes on to a longer student token.

Where it hardly ever does, the token settles which student token comes; else its mass is
open until the row behind it is known. Three sources, the later ones better: an estimate
from the vocabularies (``tables.leak_rates``), the teacher's row behind the token alone
(``LoneRows``), and the rows behind it earlier in the rollout (``seen``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32

from teacher_server.realign.pair.tables import NO_STATE, ROOT, SETTLED_LEAK, PairTables
from teacher_server.realign.walk.masses import places
from teacher_server.realign.walk.rows import Float64
from teacher_server.realign.walk.states import ALONE, OPEN, UNTOLD, StudentStates
from teacher_server.realign.walk.written import CONTRADICTS, END, OwnPairs, followed

Int64 = NDArray[np.int64]
# Continuations with less mass are not looked up.
LEAST_LOOKED_UP = 2e-3
# Mass from which the lone row of a token is wanted.
LEAST_ASKED = 5e-3


class LearntPair:
    """A pair's tables and what its tokenizers were asked; filled as it is used."""

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self.states = StudentStates(tables)
        self.own_pairs = OwnPairs(tables.teacher)

    def told(self, state: Int64, before: Int64, token: Int64) -> tuple[Int64, Bool]:
        """What the teacher's own cut of several spaces tells of what follows them: seven and
        one, where it has a token of eight, only stand before a digit or the like.

        Args:
            state: int64 [n], once the path is written.
            before, token: int64 [n], the path's last two teacher tokens; before -1: none.

        Returns: (answers, depends), [n] each: where something must follow, the student's
            token or CONTRADICTS if all that can gives the same, OPEN if not; elsewhere
            UNTOLD; whether the token depends on what follows, the end of the text included.
        """
        answers, depends = np.full(len(state), UNTOLD), np.zeros(len(state), np.bool_)
        spaces = np.flatnonzero(self.states.spaces(state))
        kinds = self.own_pairs.followed(before[spaces], token[spaces])
        for index, kind in zip(spaces.tolist(), kinds.tolist(), strict=True):
            if kind:
                answer = self.states.answer_before(int(state[index]), kind)
                depends[index] = answer == OPEN
                answers[index] = answer if kind < END else UNTOLD
        return answers, depends


def is_told(answers: Int64) -> Bool:
    """bool [n]: which are a token or CONTRADICTS."""
    told: Bool = answers >= CONTRADICTS
    return told


@dataclass(frozen=True)
class Shares:
    """Of n rows behind a token, the mass that goes on to a longer student token.

    Attributes:
        longer: float64 [n].
        across: float64 [n], the part of it whose student token the teacher itself would
            begin with another token: "iss", "ues" where the student has "issue".
    """

    longer: Float64
    across: Float64


def shares_behind(
    tokens: Int64, ids: Int64, log_probs: Float64, pair: LearntPair, skip: int = 0
) -> Shares:
    """Args: tokens [n]; ids, log_probs [n, M], of the rows behind them; skip: bytes at the
    beginning of the tokens that belong to what precedes them."""
    count, states, tables = len(tokens), pair.states, pair.tables
    rest = tokens
    behind = states.step(np.full(count, ALONE), tokens)
    if skip:
        data = [tables.teacher.token_bytes[token][skip:] for token in tokens.tolist()]
        rest = np.array([tables.teacher.by_bytes.get(one, -1) for one in data], np.int64)
        behind = states.enter(np.full(count, ALONE), data)
    line, place = places(log_probs > np.log(LEAST_LOOKED_UP))
    after = ids.take(place)
    joins = states.joins(behind[line], after[:, None])[:, 0]
    line, after, mass = line[joins], after[joins], np.exp(log_probs.take(place[joins]))
    known = rest[line] >= 0
    begun = np.maximum(rest[line], 0)
    trie = tables.steps(tables.steps(np.where(known, ROOT, NO_STATE), begun), after)
    whole = tables.known_pairs(begun, after) & known
    begun = states.step(behind[line], after)
    told, _ = pair.told(begun, tokens[line], after)
    answers = np.where(is_told(told), told, states.answer(begun))
    changed = answers != states.answer(behind)[line]
    # What the teacher itself writes otherwise says nothing.
    changed[changed] = pair.own_pairs.writes(tokens[line[changed]], after[changed])
    longer = whole | (trie != NO_STATE) | changed
    return Shares(
        longer=np.minimum(np.bincount(line, mass * longer, count), 1.0),
        across=np.minimum(np.bincount(line, mass * (longer & ~whole), count), 1.0),
    )


class LoneRows:
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
    """As ``LoneRows.closed``; ids, log_probs [n] are the row behind the token alone."""
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


class TokenLeaks:
    """What is known of tokens at large, for entries of rows: ids and masses of one shape.

    Lone rows count from LEAST_ASKED on, where they are asked for: whether other rollouts
    have asked for one must not matter.
    """

    def __init__(self, estimated: Bool, lone: LoneRows | None) -> None:
        self._estimated = estimated
        self._lone = lone

    def leaky(self, ids: Int64, mass: Float64) -> Bool:
        leaky: Bool = self._estimated.take(ids)
        if self._lone is not None:
            place, tokens, known = self._asked(ids, mass, self._lone)
            leaky.put(place[known], self._lone.leak[tokens[known]] > SETTLED_LEAK)
        return leaky

    def rests_go_on(self, ids: Int64, skip: Int64, pair: LearntPair) -> Bool:
        """bool [n]: ``LoneRows.rest_goes_on`` of tokens whose lone rows count."""
        assert self._lone is not None or not len(ids)
        found = [
            self._lone is not None and self._lone.rest_goes_on(token, one, pair)
            for token, one in zip(ids.tolist(), skip.tolist(), strict=True)
        ]
        return np.array(found, np.bool_)

    def shares_of(self, ids: Int64, then: Int64) -> Float64:
        """float64 [n]: ``LoneRows.share_of`` of tokens whose lone rows count."""
        if self._lone is None:
            return np.ones(len(ids))
        pairs = zip(ids.tolist(), then.tolist(), strict=True)
        return np.array([self._lone.share_of(*pair) for pair in pairs], np.float64)

    def undone(self, ids: Int64, mass: Float64, state: Int64, pair: LearntPair) -> Bool:
        """bool [n]: ``LoneRows.undone`` of tokens whose lone rows count."""
        undone = self.counts(ids, mass)
        if self._lone is not None:
            for index in np.flatnonzero(undone).tolist():
                undone[index] = self._lone.undone(int(ids[index]), int(state[index]), pair)
        return undone

    def closed(
        self, before: Int64, ids: Int64, mass: Float64, state: Int64, pair: LearntPair
    ) -> Int64:
        """int64 [n]: ``LoneRows.closed`` of tokens whose lone rows count, else OPEN."""
        closed = np.full(len(ids), OPEN)
        if self._lone is not None:
            for index in np.flatnonzero(self.counts(ids, mass)).tolist():
                key = int(before[index]), int(ids[index]), int(state[index])
                closed[index] = self._lone.closed(*key, pair)
        return closed

    def across(self, ids: Int64, mass: Float64) -> Bool:
        """As in ``LoneRows``."""
        across = np.zeros(ids.shape, np.bool_)
        if self._lone is not None:
            place, tokens, known = self._asked(ids, mass, self._lone)
            across.put(place[known], self._lone.across[tokens[known]])
        return across

    def unknown(self, ids: Int64, mass: Float64) -> Bool:
        """Entries whose lone rows should be asked for."""
        unknown = np.zeros(ids.shape, np.bool_)
        if self._lone is not None:
            place, _, known = self._asked(ids, mass, self._lone)
            unknown.put(place, ~known)
        return unknown

    def counts(self, ids: Int64, mass: Float64) -> Bool:
        """Entries whose lone rows are known and count."""
        counts = np.zeros(ids.shape, np.bool_)
        if self._lone is not None:
            place, _, known = self._asked(ids, mass, self._lone)
            counts.put(place, known)
        return counts

    def _asked(self, ids: Int64, mass: Float64, lone: LoneRows) -> tuple[Int64, Int64, Bool]:
        """Places and tokens of the few entries whose lone rows count, and which are known."""
        place = np.flatnonzero(mass >= LEAST_ASKED)
        tokens = ids.take(place)
        return place, tokens, lone.known[tokens]

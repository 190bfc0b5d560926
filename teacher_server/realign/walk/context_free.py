"""What one teacher's context-free rows have shown about a pair.

A *context-free row* is the teacher's row after a single token, with nothing before it but
a beginning (or end) of text. It depends on the teacher and the temperature alone, never on
a rollout: whenever it is asked for, the answer is the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32

from teacher_server.realign.pair.tables import EXTENSION_LIMIT, PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS, possible_followers
from teacher_server.realign.segmentation.extension_shares import LEAST_LOOKED_UP, extension_shares
from teacher_server.realign.segmentation.memo import Memo
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# The part of what may follow several spaces that has to give one student token, for that one to get
# its share of the mass.
LEAST_SHARE = 0.8


class ContextFreeRows:
    """The context-free rows of one teacher, filled as they are asked for.

    Attributes:
        known: bool [V_T], tokens whose rows are here.
        extension_share: float32 [V_T], where known: the part of the row's mass with which
            the token is extended.
        resegmented: bool [V_T], where known: whether more than EXTENSION_LIMIT of the mass
            extends the token to student tokens that the teacher begins with another token.
    """

    def __init__(self, tables: PairTables) -> None:
        self.known: Bool = np.zeros(tables.teacher.size, np.bool_)
        self.extension_share: Float32 = np.zeros(tables.teacher.size, np.float32)
        self.resegmented: Bool = np.zeros(tables.teacher.size, np.bool_)
        self._rows: dict[int, tuple[Int64, Float64]] = {}
        # By token and bytes skipped, and by token and state; shares by their bits.
        self._rests, self._kept, self._moved = Memo(), Memo(), Memo()
        self._after_spaces: dict[tuple[int, int, int], tuple[int, float]] = {}
        self._generation = 0

    def leave_open(self, tokens: Int64) -> None:
        """Counts the tokens [n] as extended always, for rows that cannot be used."""
        self.extension_share[tokens] = 1.0
        self.known[tokens] = True

    def learn(self, tokens: Int64, ids: Int64, log_probs: Float64, pair: PairSegmentation) -> None:
        """Adds the context-free rows of the tokens [n]: ids, log_probs [n, M]."""
        found = extension_shares(tokens, ids, log_probs, pair)
        for token, row, values in zip(tokens.tolist(), ids, log_probs, strict=True):
            kept = values > np.log(LEAST_LOOKED_UP)
            self._rows[token] = row[kept], values[kept]
        self.extension_share[tokens] = found.extended
        self.resegmented[tokens] = found.resegmented > EXTENSION_LIMIT
        self.known[tokens] = True

    def share_of_next(self, token: int, then: int) -> float:
        """Of the mass after the known token, the part on the token ``then``; where the row
        does not list it, the most that it can have. 1 where the row cannot be used."""
        row = self._rows.get(token)
        if row is None:
            return 1.0
        ids, log_probs = row
        return float(np.exp(log_probs[ids == then]).sum()) or LEAST_LOOKED_UP

    def share_of_ranks(self, token: int, low: int, high: int, pair: PairSegmentation) -> float:
        """Of the mass after the known token, the part on teacher tokens of these ranks that the
        teacher's tokenizer itself writes there. 1 where the row cannot be used."""
        row = self._rows.get(token)
        if row is None:
            return 1.0
        ids, log_probs = row
        rank = pair.tables.teacher.rank[ids]
        within = np.flatnonzero((rank >= low) & (rank < high))
        ids, mass = ids[within], np.exp(log_probs[within])
        written = pair.canonical_pairs.are_canonical(np.full(len(ids), token), ids)
        return float(mass[written].sum())

    def rests_may_extend(self, token: Int64, skip: Int64, pair: PairSegmentation) -> Bool:
        """bool [n]: whether the known tokens without their first ``skip`` bytes are extended with
        more than EXTENSION_LIMIT of the mass; True where the row cannot be used."""
        size = len(self.known)

        def ask(keys: list[int]) -> Int64:
            shares = [self._rest_extended(*divmod(key, size), pair) for key in keys]
            return (np.array(shares) > EXTENSION_LIMIT).astype(np.int64)

        may_extend: Bool = self._rests.get_or_ask(skip * size + token, ask) > 0
        return may_extend

    def _rest_extended(self, skip: int, token: int, pair: PairSegmentation) -> float:
        row = self._rows.get(token)
        if row is None:
            return 1.0
        shares = extension_shares(np.array([token]), row[0][None], row[1][None], pair, skip)
        return float(shares.extended[0])

    def shares_kept(self, token: Int64, state: Int64, pair: PairSegmentation) -> Float64:
        """float64 [n]: of the mass after the known tokens, the part that leaves the text before
        them cut as the student has cut it; ``state``: once the token is written.

        Where the row cannot be used: 0 or 1, as if the text ended there.
        """
        return self._shares(self._kept, self._share_kept, token, state, pair)

    def _share_kept(self, state: int, token: int, pair: PairSegmentation) -> float:
        states, row = pair.states, self._rows.get(token)
        here = np.array([state])
        contradicted = bool(states.answer(here)[0] == CONTRADICTS)
        if row is None:
            return 0.0 if contradicted else 1.0
        ids, log_probs = row
        joins = states.may_join(here, ids[None])[0]
        ids, mass = ids[joins], np.exp(log_probs[joins])
        after = states.step(np.full(len(ids), state), ids)
        possible = (states.answer(after) != CONTRADICTS) | states.begins_added(after)
        if contradicted:
            return float(mass[possible].sum())
        # What the teacher's tokenizer would not write after the token is no evidence.
        canonical = pair.canonical_pairs.are_canonical(np.full(len(ids), token), ids)
        return max(1.0 - float(mass[~possible & canonical].sum()), 0.0)

    def shares_moved(self, token: Int64, state: Int64, pair: PairSegmentation) -> Float64:
        """float64 [n]: of the mass after the known tokens, the part with which the student's token
        is another than if the text ended there, or may be, since it goes on with an added token;
        ``state``: once the token is written. 1 where the row cannot be used."""
        return self._shares(self._moved, self._share_moved, token, state, pair)

    def _share_moved(self, state: int, token: int, pair: PairSegmentation) -> float:
        states, row = pair.states, self._rows.get(token)
        if row is None:
            return 1.0
        ids, log_probs = row
        here = np.array([state])
        joins = states.may_join(here, ids[None])[0]
        ids, mass = ids[joins], np.exp(log_probs[joins])
        after = states.step(np.full(len(ids), state), ids)
        moved = (states.answer(after) != states.answer(here)) | states.begins_added(after)
        # What the teacher's tokenizer would not write after the token is no evidence.
        moved &= pair.canonical_pairs.are_canonical(np.full(len(ids), token), ids)
        return float(mass[moved].sum())

    def _shares(
        self,
        known: Memo,
        share: Callable[[int, int, PairSegmentation], float],
        token: Int64,
        state: Int64,
        pair: PairSegmentation,
    ) -> Float64:
        """float64 [n]: ``share`` of each state and token, asked once and kept in ``known``."""
        self._forget_old_states(pair)
        size = len(self.known)

        def ask(keys: list[int]) -> Int64:
            shares = [share(*divmod(key, size), pair) for key in keys]
            return np.array(shares, np.float64).view(np.int64)

        return known.get_or_ask(state * size + token, ask).view(np.float64)

    def answer_after_spaces(
        self, before: int, token: int, state: int, pair: PairSegmentation
    ) -> tuple[int, float]:
        """(answer, share): the student's token, or CONTRADICTS, where several spaces end with the
        known token, and the part of the mass after them with which it is that one; OPEN and 0
        where the row does not decide it.

        Only what the teacher's tokenizer itself writes after both tokens counts, and at least
        LEAST_SHARE of that has to give the same student token; where nearly all does, the share
        is 1.

        Args:
            before: the teacher's token before, with which the spaces begin; -1: none.
            state: once both are written.
        """
        self._forget_old_states(pair)
        key = before, token, state
        if key not in self._after_spaces:
            row = self._rows.get(token)
            found = (OPEN, 0.0) if row is None else _answer_after_spaces(*key, *row, pair)
            self._after_spaces[key] = found
        return self._after_spaces[key]

    def _forget_old_states(self, pair: PairSegmentation) -> None:
        """States have other numbers in each generation."""
        if self._generation != pair.states.generation:
            self._kept, self._moved = Memo(), Memo()
            self._after_spaces.clear()
            self._generation = pair.states.generation


def _answer_after_spaces(
    before: int, token: int, state: int, ids: Int64, log_probs: Float64, pair: PairSegmentation
) -> tuple[int, float]:
    """As ``ContextFreeRows.answer_after_spaces``; ids, log_probs [n] are the token's row."""
    states, teacher = pair.states, pair.tables.teacher
    path = [one for one in (before, token) if one >= 0]
    after = states.step(np.full(len(ids), state), ids)
    answers = states.answer(after)
    canonical = np.zeros(len(ids), np.bool_)
    for index, spaces in enumerate(states.end_in_spaces(after).tolist()):
        # More spaces are written or not by what follows in turn, and may have to be open.
        followers = possible_followers(teacher, [*path, int(ids[index])], spaces=spaces)
        canonical[index] = followers != 0
        if spaces and followers:
            answers[index] = states.answer_if_followed(int(after[index]), followers)
    answers, mass = answers[canonical], np.exp(log_probs[canonical])
    found, inverse = np.unique(answers, return_inverse=True)
    shares = np.bincount(inverse, mass, len(found))
    total = float(shares.sum())
    if total < EXTENSION_LIMIT or shares.max() < LEAST_SHARE * total:
        return OPEN, 0.0
    answer, share = int(found[shares.argmax()]), float(shares.max()) / total
    if answer == OPEN or not states.ends_within(state, answer):
        return OPEN, 0.0
    return answer, 1.0 if share >= 1 - EXTENSION_LIMIT else share

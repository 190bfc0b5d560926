"""Of rows behind a token, the mass that goes on to a longer student token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.tables import NO_STATE, ROOT
from teacher_server.realign.segmentation.pair_segmentation import LearntPair, is_told
from teacher_server.realign.segmentation.states import ALONE
from teacher_server.realign.walk.masses import places
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# Continuations with less mass are not looked up.
LEAST_LOOKED_UP = 2e-3


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

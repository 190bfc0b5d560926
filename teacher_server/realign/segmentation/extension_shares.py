"""How much of the mass of the row after a token goes to extensions of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.static_tables import OFF_TRIE, TRIE_ROOT
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation, is_implied
from teacher_server.realign.segmentation.states import EMPTY_STATE

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Next tokens with less mass are not looked up.
LEAST_LOOKED_UP = 2e-3
# Mass from which the context-free row of a token is asked for, and counts.
LEAST_ASKED = 5e-3


@dataclass(frozen=True)
class ExtensionShares:
    """Of n rows, each after a token: the part of the mass with which the token is extended.

    A token is extended by the next one when both together are the beginning of a longer
    student token, or change which student token the first one's bytes begin with, or when an
    added token of the student has begun.

    Attributes:
        extended: float64 [n].
        resegmented: float64 [n], the part of it whose student token the teacher itself would
            begin with another token: "iss", "ues" where the student has "issue".
    """

    extended: Float64
    resegmented: Float64


def extension_shares(
    tokens: Int64, ids: Int64, log_probs: Float64, pair: PairSegmentation, skip: int = 0
) -> ExtensionShares:
    """Reads the rows after tokens.

    Args:
        tokens: int64 [n].
        ids, log_probs: [n, M], of the row after each token.
        skip: bytes at the beginning of the tokens that belong to the text before them.
    """
    count, states, tables = len(tokens), pair.states, pair.tables
    rest = tokens
    alone = states.step(np.full(count, EMPTY_STATE), tokens)
    if skip:
        data = [tables.teacher.token_bytes[token][skip:] for token in tokens.tolist()]
        rest = np.array([tables.teacher.by_bytes.get(one, -1) for one in data], np.int64)
        alone = states.enter(np.full(count, EMPTY_STATE), data)
    line, column = np.nonzero(log_probs > np.log(LEAST_LOOKED_UP))
    after, masses = ids[line, column], np.exp(log_probs[line, column])
    joins = states.may_join(alone[line], after[:, None])[:, 0]
    line, after, mass = line[joins], after[joins], masses[joins]
    known = rest[line] >= 0
    begun = np.maximum(rest[line], 0)
    node = tables.trie_steps(np.where(known, TRIE_ROOT, OFF_TRIE), begun)
    node = tables.trie_steps(node, after)
    whole = tables.begin_student_token(begun, after) & known
    both = states.step(alone[line], after)
    implied, _ = pair.implied_by_spaces(both, tokens[line], after)
    answers = np.where(is_implied(implied), implied, states.answer(both))
    changed = answers != states.answer(alone)[line]
    # A pair that the teacher's tokenizer would itself cut in another way is no evidence.
    changed[changed] = pair.canonical_pairs.are_canonical(tokens[line[changed]], after[changed])
    # An added token takes its text out of the tokens before it once all of it is there.
    extended = whole | (node != OFF_TRIE) | changed | states.begins_added(both)
    return ExtensionShares(
        extended=np.minimum(np.bincount(line, mass * extended, count), 1.0),
        resegmented=np.minimum(np.bincount(line, mass * (extended & ~whole), count), 1.0),
    )

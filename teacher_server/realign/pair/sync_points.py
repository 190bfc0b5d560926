"""Sync points: boundaries that both tokenizers share and that no later text can move.

They are needed because the teacher's encoding of a whole rollout depends, at the end of
every prefix, on the text after it: a row that started from the last common boundary would
know what follows it. The walk for a student's position therefore starts at the last offset
where both tokenizers begin a pre-token whatever follows the position; inside a long
pre-token, at a common boundary that lies SETTLED_AFTER_BYTES back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.encoder import Encoded
from teacher_server.realign.pair.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Inside a longer pre-token (Chinese has no spaces) a boundary counts as settled this many
# bytes later; the causality test measures what that costs.
SETTLED_AFTER_BYTES = 24
APOSTROPHES = "'\u2019"


def sync_offsets(begin: Int64, common: Int64, boundaries: Sequence[tuple[int, int]]) -> Int64:
    """int64 [n]: the offset of the sync point of each position.

    Args:
        begin: int64 [n], where the positions begin.
        common: the common boundaries, ascending.
        boundaries: as ``settled_boundaries`` gives them, for the whole rollout.
    """
    known = set(common.tolist())
    points = [(from_, at) for at, from_ in boundaries if at in known]
    points += [(at + SETTLED_AFTER_BYTES, at) for at in common.tolist()]
    points.sort()
    settled_from = [from_ for from_, _ in points]
    furthest: Int64 = np.maximum.accumulate([at for _, at in points])
    last = [bisect_right(settled_from, offset) - 1 for offset in begin.tolist()]
    return furthest[np.array(last, np.int64)]


def settled_boundaries(
    span: bytes, cuts: Sequence[tuple[Encoded, Vocabulary]]
) -> list[tuple[int, int]]:
    """(offset, settled from): where all tokenizers begin a pre-token, whatever follows once
    the text up to "settled from" is there.

    Args:
        cuts: the encodings of ``span`` by each of them.
    """
    found = [_pretoken_starts(span, encoded, vocabulary) for encoded, vocabulary in cuts]
    starts = set.intersection(*found)
    text = span.decode("utf-8", "replace") if starts else ""
    if len(text.encode()) != len(span):
        return []  # not UTF-8: boundaries settle by distance alone
    offset, offsets = 0, []
    characters = list(text)
    for character in characters:
        offsets.append(offset)
        offset += len(character.encode())
    offsets.append(offset)
    # Of white space the text after it decides how it is cut: the boundary is settled once
    # the next character that is none is there.
    solid = len(characters)
    settled = []
    for index in range(len(characters) - 1, -1, -1):
        if not is_loose(characters[index]):
            solid = index
        if not index or offsets[index] not in starts or solid == len(characters):
            continue
        if not _may_rejoin(characters[index - 1], characters[index]):
            settled.append((offsets[index], offsets[solid + 1]))
    return settled[::-1]


def apart_from_added(
    settled: Sequence[tuple[int, int]], begun: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """(offset, settled from) of ``settled_boundaries``, once no added token can have begun before
    the boundary and end behind it.

    Args:
        begun: as ``AddedTexts.begun_in`` gives them.
    """
    found = list(settled)
    for start, end in begun:
        for place in range(bisect_right(found, (start + 1,)), len(found)):
            at, from_ = found[place]
            if at > end:
                break
            found[place] = at, max(from_, end + 1)
    return found


def is_loose(character: str) -> bool:
    """Whether it is white space, or a control or format character: a tokenizer may cut several
    of them by what follows them."""
    return character.isspace() or not character.isprintable()


def _may_rejoin(before: str, after: str) -> bool:
    """Whether some pre-tokenizers take the boundary between these characters back when they
    read on.

    An apostrophe may turn out to begin a contraction that belongs to the word; so may the
    first of its letters. An upper-case run after marks, or after letters that are neither
    upper nor lower case, joins them when lower case follows.
    """
    if after in APOSTROPHES or (before in APOSTROPHES and after.isalpha()):
        return True
    return not before.isascii() and category(before) != "Ll" and category(after) in ("Lu", "Lt")


def _pretoken_starts(span: bytes, encoded: Encoded, vocabulary: Vocabulary) -> set[int]:
    offsets = np.concatenate([[0], np.cumsum(vocabulary.lengths[encoded.ids])])[:-1]
    if vocabulary.kind == "byte_level":
        return set(offsets[encoded.pretoken_starts].tolist())
    # SentencePiece has no pre-tokens: sure to be split are only pairs of bytes that no
    # token holds.
    values = np.frombuffer(span, np.uint8)
    split = ~vocabulary.adjacent[values[:-1], values[1:]]
    return {0, *(np.flatnonzero(split) + 1).tolist()}

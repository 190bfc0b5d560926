"""How much of the text before a position decides how what follows it is cut.

After letters and digits the student's last token is enough: where BPE keeps a boundary, what
precedes the token before it does not matter. What a pre-tokenizer looks at may reach further
back, and then the context does too:

- white space: how several spaces are cut depends on all of them;
- symbols and marks: a word takes one symbol along, but not two, and not one with a space
  before it; line ends belong to the symbols before them;
- an apostrophe, and a letter or two after it, may belong to the word before them;
- digits that are not ASCII: a piece of three digits may be several tokens;
- a character of several tokens;
- an added token that has begun: once it is whole, what precedes it is cut without it.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Tokens of a left context, at most: a longer run is cut off.
MAX_TOKENS = 24
_SYMBOL = r"(?:[^\w\s]|_)"
_APOSTROPHE = "['\u2019]"
_SHORT = r"[^\W\d_]{1,2}"
# What is to be whole at the end of the text: symbols, with a space before and line ends after
# them; white space; the end of a contraction.
_RUN = re.compile(
    rf"(?:\s?{_SYMBOL}(?:{_SYMBOL}|[\r\n])*(?:(?<=[\r\n])\s+)?|\s+|{_APOSTROPHE}{_SHORT})\Z"
)
# A space and a punctuation mark, or one and another, or one and a line end: what precedes them
# does not matter. A slash may be the last of line ends that belong to symbols before it.
_CONTRACTION = 3  # characters of one, at most
_PUNCTUATION = r"[!-/:-@\[-`{-~]"
_ENOUGH = re.compile(rf" {_PUNCTUATION}|(?!/){_PUNCTUATION}(?:{_PUNCTUATION}|[\r\n])")


class LeftContexts:
    """Where the left contexts of positions begin, for one student's tokenizer."""

    def __init__(self, student: Vocabulary) -> None:
        self._added = student.added
        texts = [_text(data) for data in student.token_bytes]
        whole = np.array([not _continues(data) for data in student.token_bytes])
        self._ends_word = whole & np.array([text[-1:].isalnum() for text in texts])
        self._short = np.array([re.fullmatch(_SHORT, text) is not None for text in texts])
        self._apostrophe = np.array([bool(re.search(_APOSTROPHE, text[-3:])) for text in texts])
        self._digit = np.array([_ends_in_digit(text) for text in texts])
        self._wide_digit = self._digit & np.array([not text.isascii() for text in texts])

    def begins(self, layout: Layout, positions: Int64) -> Int64:
        """int64 [n], of ascending positions: the first token of each one's left context; the
        position itself where a special token, or nothing, precedes it."""
        behind = _behind_special(layout)
        begins = self._of_pieces(layout, positions, behind)
        offsets = layout.student_offsets
        for start, end in self._added.begun_in(layout.data):
            low, high = np.searchsorted(offsets[positions], [start + 1, end + 1]).tolist()
            if low == high:
                continue
            first = int(np.searchsorted(offsets, start, "right"))
            (begin,) = self._of_pieces(layout, np.array([first]), behind)
            lowest = _lowest(behind, positions[low:high])
            begins[low:high] = np.maximum(np.minimum(begins[low:high], begin), lowest)
        return begins

    def _of_pieces(self, layout: Layout, positions: Int64, behind: Int64) -> Int64:
        """As ``begins``, but for added tokens; ``behind``: as ``_behind_special`` gives it."""
        ids, special = layout.student_ids, layout.special
        last = np.maximum(positions - 1, 0)
        first = np.maximum(last - 1, 0)
        begins = np.where((positions > 0) & ~special[last], last, positions)
        token, before = ids[last].astype(np.int64), ids[first].astype(np.int64)
        enough = self._ends_word[token] & ~self._apostrophe[token] & ~self._wide_digit[token]
        enough &= ~(self._short[token] & self._apostrophe[before])
        enough &= ~(self._digit[token] & self._wide_digit[before])
        enough |= (last == 0) | special[first]
        which = np.flatnonzero((begins < positions) & ~enough)
        lowest = _lowest(behind, positions[which]).tolist()
        for index, first_possible in zip(which.tolist(), lowest, strict=True):
            begins[index] = _begin(layout, int(positions[index]), first_possible)
        return begins


def _begin(layout: Layout, position: int, lowest: int) -> int:
    """The first token of the left context of a position after an ordinary token, ``lowest`` or
    after it."""
    offsets = layout.student_offsets[lowest : position + 1].tolist()
    data = layout.data[offsets[0] : offsets[-1]]
    begin = _begin_of_run(data)
    for index in range(position, lowest, -1):
        start = offsets[index - 1 - lowest] - offsets[0]
        if not _continues(data[start:]) and (start <= begin or _ENOUGH.search(_text(data[start:]))):
            return index - 1
    return lowest


def _behind_special(layout: Layout) -> Int64:
    """int64 [tokens + 1]: before each token, and at the end, the first token behind the last
    special one; 0 without one."""
    behind = np.where(layout.special, np.arange(len(layout.special)) + 1, 0)
    return np.concatenate([[0], np.maximum.accumulate(behind)])


def _lowest(behind: Int64, positions: Int64) -> Int64:
    """int64 [n]: the first tokens that the left contexts of the positions may have."""
    lowest: Int64 = np.maximum(positions - MAX_TOKENS, behind[positions])
    return lowest


def _begin_of_run(data: bytes) -> int:
    """The offset from which on ``data`` is to be whole."""
    text = _text(data)
    start = len(text)
    while start and _ends_in_digit(text[start - 1 : start]):
        start -= 1
    # No run begins further from the end than its last symbols and white space, or a contraction.
    begin = len(text)
    while begin and not text[begin - 1].isalnum():
        begin -= 1
    found = _RUN.search(text, min(begin, max(len(text) - _CONTRACTION, 0)))
    if found:
        start = found.start()
        start -= bool(re.match(_APOSTROPHE, found[0])) and start > 0
    return len(text[:start].encode("utf-8", "surrogateescape"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _continues(data: bytes) -> bool:
    """Whether a character began before it."""
    return b"\x80" <= data[:1] < b"\xc0"


def _ends_in_digit(text: str) -> bool:
    return text[-1:].isnumeric() and not text[-1:].isalpha()

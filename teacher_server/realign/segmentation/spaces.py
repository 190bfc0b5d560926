"""White space, which a tokenizer cuts by what follows it.

Most pre-tokenizers give the last of several spaces to what comes next: a word takes it
along, and before a digit, which takes none, it is a token by itself. How many spaces make
up the token before is therefore not known until something else has been written. Control and
format characters (joiners, marks of direction) count as white space here: some pre-tokenizers
cut several of them alike.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

# What may follow several spaces, one of each kind that tokenizers tell apart there: a word
# with one more space, a line end, a digit, a word, a word that is seldom one token with the
# space before it, a symbol.
FOLLOWERS = (b" x", b"\n", b"7", b"x", "\u4f60".encode(), b"(")
# Characters that Unicode counts as white space, in UTF-8.
_WHITE = (
    rb"[\t-\r ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f"
    rb"|\xe3\x80\x80"
)
# Control and format characters.
_FORMAT = (
    rb"[\x00-\x08\x0e-\x1f\x7f]|\xc2[\x80-\x9f\xad]|\xe2\x80[\x8b-\x8f\xaa-\xae]"
    rb"|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
)
_SPACE = rb"(?:" + _WHITE + rb"|" + _FORMAT + rb")"
_SEVERAL = re.compile(_SPACE + _SPACE + rb"\Z")
_LONGEST = 6  # bytes of two such characters
# The bytes that such a character may end with.
_LAST = np.zeros(256, np.bool_)
_LAST[[*range(0x21), *range(0x7F, 0xB0), 0xBF]] = True


def ends_in_spaces(data: bytes) -> bool:
    """Whether the last two characters are white space: spaces, tabs, line ends and the like."""
    return _SEVERAL.search(data, max(0, len(data) - _LONGEST)) is not None


def spaces_before(data: bytes, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [n]: whether the text before each offset ends in several spaces."""
    found = np.zeros(len(offsets), np.bool_)
    maybe = (offsets > 0) & _LAST[np.frombuffer(data, np.uint8)[np.maximum(offsets - 1, 0)]]
    for index in np.flatnonzero(maybe).tolist():
        end = int(offsets[index])
        found[index] = ends_in_spaces(data[max(end - _LONGEST, 0) : end])
    return found

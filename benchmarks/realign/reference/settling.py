"""When the student's token after the text so far is settled, for ``enumeration``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from teacher_server.realign.pair.vocabulary import Vocabulary, incomplete_tail


class Settling:
    """The student's token after the text so far, as soon as nothing can change it.

    Args:
        said: the text so far: bytes from the sync point to the position.
        tokens: the student's tokens over them.
    """

    def __init__(self, student: Vocabulary, said: bytes, tokens: Sequence[int]) -> None:
        self._student = student
        self._said = said
        self._tokens = list(tokens)
        self._known: dict[tuple[bytes, bool], int | None] = {}

    def token(self, data: bytes, *, closed: bool = False) -> int | None:
        """The token, -1 where the student would have cut the text so far in another way, or
        None where that is not settled.

        Args:
            closed: whether no token reaches beyond ``data``.
        """
        key = data, closed
        if key not in self._known:
            self._known[key] = self._settled(data, closed)
        return self._known[key]

    def _settled(self, data: bytes, closed: bool) -> int | None:
        student = self._student
        if incomplete_tail(data):
            return None  # the first bytes of a character are other tokens alone
        encoded = student.encoder.encode(data)
        ends = np.cumsum(student.lengths[encoded.ids])
        if closed:
            return self._after(encoded.ids.tolist(), True)
        begins = (ends - student.lengths[encoded.ids])[encoded.pretoken_starts].tolist()
        text = data.decode("utf-8", "ignore")
        solid = len(text.rstrip().encode())
        last = max((at for at in begins if at < solid), default=0)
        found = self._after(encoded.ids[: int(np.searchsorted(ends, last, "right"))].tolist())
        if found is None and _caseless(data[last:]):
            return self._frontier(data, last)
        return found

    def _after(self, ids: list[int], closed: bool = False) -> int | None:
        count = len(self._tokens)
        if ids[:count] != self._tokens[: len(ids)]:
            return -1
        if len(ids) > count:
            return ids[count]
        return -1 if closed else None

    def _frontier(self, data: bytes, start: int) -> int | None:
        """The token on which all encodings of a longer pre-token agree.

        In each of them one token, the first to end beyond ``data``, begins at some ``at``,
        and what precedes it is the encoding of ``data[:at]``.
        """
        answers: set[int | None] = set()
        for at in range(len(data), start - 1, -1):
            rest = data[at:]
            if rest:
                low, high = self._student.prefix_range(rest)
                texts = self._student.sorted_bytes
                while low < high and len(texts[low]) == len(rest):
                    low += 1
                if low == high:
                    continue
            head = self._student.encoder.encode(data[:start]).ids.tolist()
            (tail,) = self._student.encoder.encode_each([data[start:at]])
            answer = self._after(head + tail)
            if answer is None:
                return None  # it begins at the position or before
            answers.add(answer)
            if len(answers) > 1:
                return None
        return answers.pop() if answers else None


def _caseless(data: bytes) -> bool:
    """Whether it is letters without case only: pre-tokenizers never split such a run later."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    letters = text if text[:1].isalpha() else text[1:]  # a mark may lead a word
    return letters != "" and all(x.isalpha() and x.lower() == x.upper() for x in letters)

"""Which token a tokenizer puts at an offset, given the token before and the bytes after."""

from __future__ import annotations

from collections.abc import Iterable

from teacher_server.realign.vocabulary import Vocabulary

# Answers kept; beyond it the cache starts anew.
MAX_KNOWN = 2_000_000
# Instead of a token id: the tokenizer would not have ended the token before here.
CONTRADICTS = -1
# There is no token before, or none that could merge with what follows.
NO_CONTEXT = -1

Question = tuple[int, bytes]


class Resolver:
    """Answers from the tokenizer's encoder, each asked once.

    A question is (token before or NO_CONTEXT, bytes that follow): where BPE keeps the
    boundary between the two, what precedes the token before does not matter.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: dict[Question, int] = {}
        self._lefts: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def context(self, text: bytes) -> int:
        """A number to ask with instead of a token before: any text."""
        if text not in self._numbers:
            self._numbers[text] = self._vocabulary.size + len(self._lefts)
            self._lefts.append(text)
        return self._numbers[text]

    def text(self, context: int) -> bytes:
        """The bytes of a token before, or of a text given to ``context``."""
        if context == NO_CONTEXT:
            return b""
        beyond = context - self._vocabulary.size
        return self._lefts[beyond] if beyond >= 0 else self._vocabulary.token_bytes[context]

    def answers(self, questions: Iterable[Question]) -> list[int]:
        """The token that begins where the bytes begin, or CONTRADICTS, for each."""
        asked = list(questions)
        known = self._known
        new = list(dict.fromkeys(question for question in asked if question not in known))
        if new:
            if len(known) > MAX_KNOWN:
                known.clear()
                new = list(dict.fromkeys(asked))
            known.update(zip(new, self._ask(new), strict=True))
        return [known[question] for question in asked]

    def _ask(self, questions: list[Question]) -> list[int]:
        table = self._vocabulary.token_bytes
        before = [self.text(token) for token, _ in questions]
        texts = [left + right for left, (_, right) in zip(before, questions, strict=True)]
        answers = []
        for left, ids in zip(before, self._vocabulary.encoder.encode_each(texts), strict=True):
            read = 0
            answer = CONTRADICTS
            for token in ids:
                if read >= len(left):
                    answer = token if read == len(left) else CONTRADICTS
                    break
                read += len(table[token])
            answers.append(answer)
        return answers

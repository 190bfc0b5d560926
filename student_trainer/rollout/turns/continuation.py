"""The tokens of a text that goes on after another one."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.data.encoding import Encoder

# What a text may be encoded behind. The first is nothing: most tokenizers read a text alike
# wherever it stands. Some put a space before what they take for a beginning.
ANCHORS = ("", "x", ".", "\n")
# A text, and what may follow it.
BEFORE, AFTER = "go north", ("a door.\n> ", "\na door.\n> ", " a door")


class Continuation:
    """Encodes texts as a tokenizer reads them behind another text, whose tokens stay."""

    def __init__(self, tokenizer: Any, encoder: Encoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder

    def encoded(self, text: str) -> list[int]:
        """The ids that add this text to another one.

        Raises:
            ConfigurationError: the tokenizer has none that do.
        """
        if not text:
            return []
        for anchor in self._anchors:
            found = self._behind(anchor, text)
            if found is not None:
                return found
        raise ConfigurationError(
            f"the student's tokenizer reads {text[:40]!r} otherwise behind another text, whatever "
            "that is, so that observations cannot follow the student's turns as they are",
            where="student.model",
            fix="give prompts as messages, for which the chat template separates turns, or take "
            "another student",
        )

    @cached_property
    def _anchors(self) -> tuple[str, ...]:
        """Those behind which a text becomes ids that add it, and nothing else, to another."""
        return tuple(anchor for anchor in ANCHORS if all(self._adds(anchor, one) for one in AFTER))

    def _adds(self, anchor: str, text: str) -> bool:
        found = self._behind(anchor, text)
        before, whole = self._encoder.encode([BEFORE, BEFORE + text])
        return found is not None and self._text([*before, *found]) == self._text(whole)

    def _behind(self, anchor: str, text: str) -> list[int] | None:
        """The ids of the text behind the anchor; None where they are not apart from its own."""
        first, whole = self._encoder.encode([anchor, anchor + text])
        return whole[len(first) :] if whole[: len(first)] == first else None

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

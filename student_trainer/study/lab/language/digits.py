"""The sums for a tokenizer that writes every digit as a token of its own."""

from __future__ import annotations

from typing import ClassVar

from student_trainer.study.lab.language.sums import SumsTask


class SumsInDigitsTask(SumsTask):
    """The same texts as ``SumsTask``. The tokenizer has the ten digits and no longer number, so
    that 17 takes two tokens, where a tokenizer of ``SumsTask`` has one for it."""

    name: ClassVar[str] = "sums-digits"
    numbers: ClassVar[range] = range(10)

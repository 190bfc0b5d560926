"""The words of the laboratory's languages, and the draw of one of them.

A prompt names one of eight styles. A style has a word list of its own for each slot of a
sentence, from which a writer takes one word at a time by Zipf's law. So there are many valid
ways to write a right response, and a probable word of one style is improbable in another.
"""

from __future__ import annotations

import random
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

STYLES = 8
SYNONYMS = 16
ZIPF = 1.2
# What a slot's word says; a task uses some of them.
SLOTS = ("next", "aside", "done", "has", "plus", "makes", "stop")
ANSWER = "answer"
# A writer puts 0 to 3 asides in a step.
ASIDES = (0.4, 0.3, 0.2, 0.1)
ITEMS = (
    "apple", "axe", "bag", "ball", "bed", "bell", "bench", "boat", "book", "bowl", "box", "bread",
    "brush", "cake", "candle", "chair", "clock", "coat", "cup", "desk", "door", "drum", "egg",
    "fan", "flag", "fork", "glass", "glove", "hat", "horn", "jar", "key", "kite", "knife", "lamp",
    "leaf", "lock", "map", "nail", "pan", "pear", "pen", "pipe", "plate", "ring", "rope", "shoe",
    "spoon",
)  # fmt: skip
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_CUMULATIVE = tuple(accumulate(rank**-ZIPF for rank in range(1, SYNONYMS + 1)))
_ASIDES = tuple(accumulate(ASIDES))


def _invented() -> list[str]:
    """Words of two syllables, shuffled. None begins as an item or the word for the answer does,
    so that each can be one token beside them."""
    begins = {word[:3] for word in (*ITEMS, ANSWER)}
    syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    words = [a + b for a in syllables for b in syllables if (a + b)[:3] not in begins]
    random.Random("words of the laboratory").shuffle(words)
    return words


def _lexicon() -> dict[tuple[int, str], list[str]]:
    words = iter(_invented())
    return {
        (style, slot): [next(words) for _ in range(SYNONYMS)]
        for style in range(STYLES)
        for slot in SLOTS
    }


# (style, slot) -> its words, the most probable first. No word is in two lists.
LEXICON = _lexicon()
SLOT_OF = {word: slot for (_, slot), words in LEXICON.items() for word in words}


@dataclass
class Response:
    """A response while it is written, in words.

    Attributes:
        words: joined by spaces, and with a space before the first, they are the text.
        weights: of each word in the training loss. Words that the task's rules decide have
            ``decided``; a wrong word that was put in on purpose has 0.
    """

    style: int
    draw: random.Random
    decided: float = 1.0

    def __post_init__(self) -> None:
        self.words: list[str] = []
        self.weights: list[float] = []

    def say(self, slot: str) -> None:
        """Adds a word of the slot, drawn by Zipf's law."""
        rank = bisect(_CUMULATIVE, self.draw.random() * _CUMULATIVE[-1])
        self.words.append(LEXICON[self.style, slot][rank])
        self.weights.append(1.0)

    def begin_step(self) -> None:
        """Adds what begins a step: a connective and 0 to 3 asides."""
        self.say("next")
        for _ in range(bisect(_ASIDES, self.draw.random() * _ASIDES[-1])):
            self.say("aside")

    def state(self, word: object, *, wrong: bool = False) -> None:
        """Adds a word that the rules decide."""
        self.words.append(str(word))
        self.weights.append(0.0 if wrong else self.decided)

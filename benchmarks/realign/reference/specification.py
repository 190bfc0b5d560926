"""What a student's row ought to be. This file is the specification; read it first.

A student has written tokens y_1 .. y_k, whose bytes are the *text so far*. The probability of
the student token s is this:

    Let the teacher, whose own tokenizer has cut the text so far, go on writing. Let the
    student's tokenizer read the text so far and what the teacher wrote, as one text. Only
    where it gives y_1 .. y_k again does the writing count. s is the token that comes next.

Three things follow, each of which a shorter way would miss.

How a tokenizer cuts the end of a text depends on what follows. The text so far may thus be cut
in several ways (``Past``), and its last token may reach beyond the position: the teacher's
next token is then one that begins with the bytes left over. A past counts with the
probability that the teacher gives its tokens, and only before a text for which the teacher's
tokenizer gives this very past. Other ways to spell the text so far do not count.

What the teacher writes may be read by the student's tokenizer so that y_1 .. y_k change. If
the teacher's own tokenizer writes it so, it cannot have happened, and does not count. If the
teacher wrote what its tokenizer never would, its mass is ``lost``: it stays in the sum.

A text may end inside a character. It is never encoded there: the writing goes on until its
last character is whole, and long enough that no token near the position touches the end.

Nothing else is assumed. In particular nothing settles a token but reading whole texts. The
masses of the teacher's first tokens are exact; how their text goes on is drawn. Where drawn
texts disagree about s, the next token is written out in turn (``_split``). What is left of
chance is measured by drawing twice (``Truth.excess``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.realign.reference.pasts import Past, Window, pasts_of
from benchmarks.realign.reference.raw_tokenizer import RawTokenizer
from benchmarks.realign.reference.truth import Truth, truth_of

# What a drawn text may give instead of a token.
IMPOSSIBLE, LOST = -1, -2
# Bytes and tokens that a drawn text holds beyond the token that it decides.
BEYOND_BYTES, BEYOND_TOKENS = 20, 3
# Parts of the whole mass: below the first, tokens of a row are drawn together; from the
# second, a part about which texts disagree is split.
APART, WORTH_SPLITTING = 1e-3, 1.5e-3
# Texts that are drawn to see whether they agree, and parts that may be split.
PILOT, MOST_SPLITS = 3, 32
# Texts that are drawn to see whether a past is possible at all.
PAST_DRAWS = 24
# Noise of a row from which more texts are drawn, and how many before that is given up.
NOISY, MOST_DRAWS = 0.015, 2000


class Teacher(Protocol):
    def row(self, before: Sequence[int]) -> dict[int, float]:
        """The probability of each token that may follow."""
        ...

    def draw(self, before: Sequence[int], rng: random.Random) -> int:
        """One of them, by its probability."""
        ...


@dataclass
class _Part:
    """Some of what the teacher may write: all texts that begin with ``path``, but for those
    whose next token is one of ``without``."""

    past: Past
    path: tuple[int, ...]
    mass: float
    without: frozenset[int] = frozenset()
    seen: list[int] = field(default_factory=list)
    chance: float = 0.0

    @property
    def disagreement(self) -> float:
        """``chance``, or 0 where all that was seen agrees."""
        return self.chance if len(set(self.seen)) > 1 else 0.0

    def weigh(self) -> None:
        """Sets ``chance``: standard deviation of one draw of the likeliest outcome, times the
        mass."""
        share = max(self.seen.count(one) for one in set(self.seen)) / (len(self.seen) + 0.5)
        self.chance = float(self.mass * (share * (1 - share)) ** 0.5)


class Reference:
    """Right rows for one teacher and one pair of tokenizers."""

    def __init__(self, model: Teacher, student: RawTokenizer, teacher: RawTokenizer) -> None:
        self._model = model
        self._student = student
        self._teacher = teacher

    def truth(self, window: Window, rng: random.Random, draws: int = 300) -> Truth | None:
        """The right row at the end of a window.

        Args:
            draws: texts that decide the result, beside two of each part; more where these
                leave much to chance.

        Returns: None where the teacher writes nothing that agrees with the text so far.
        """
        found = pasts_of(window, self._model, self._teacher)
        pasts = [past for past in found if self._may_be(window, past, rng)]
        whole = sum(past.mass for past in pasts)
        if whole <= 0:
            return None
        parts: list[_Part] = []
        for past in pasts:
            root = _Part(past, past.tokens, past.mass / whole)
            parts += self._split(window, root, past.next_tokens)
        self._try(window, parts, rng)
        for _ in range(MOST_SPLITS):
            worst = max(parts, key=lambda part: part.disagreement)
            row = self._model.row([*window.before, *worst.path])
            left = {token: mass for token, mass in row.items() if token not in worst.without}
            if worst.disagreement < WORTH_SPLITTING or not left:
                break
            parts.remove(worst)
            new = self._split(window, worst, left)
            self._try(window, new, rng)
            parts += new
        while True:
            found = self._decide(window, parts, draws, rng)
            if found is None or found.noise <= NOISY or draws > MOST_DRAWS:
                return found
            draws *= 4  # drawn anew: what was seen does not decide what counts

    def _may_be(self, window: Window, past: Past, rng: random.Random) -> bool:
        """Whether some text after a past is possible: a likely past that none may follow would
        hide an unlikely one that has been written."""
        row = self._model.row([*window.before, *past.tokens])
        part = _Part(past, past.tokens, 1.0, frozenset(row.keys() - past.next_tokens.keys()))
        self._draw(window, [part], [PAST_DRAWS], rng)
        return any(one != IMPOSSIBLE for one in part.seen)

    def _decide(
        self, window: Window, parts: list[_Part], draws: int, rng: random.Random
    ) -> Truth | None:
        """Draws twice half of ``draws`` texts, most where they may disagree most."""
        chances = sum(part.chance for part in parts)
        counts = [1 + round(draws / 2 * part.chance / chances) for part in parts]
        halves = []
        for _ in range(2):
            self._draw(window, parts, counts, rng)
            halves.append(_masses(parts))
        return truth_of(halves, LOST)

    def _split(self, window: Window, part: _Part, row: dict[int, float]) -> list[_Part]:
        """Its parts by the next token; the unlikely ones of ``row`` stay together."""
        total = sum(row.values())
        apart = {t: m / total for t, m in row.items() if part.mass * m / total >= APART}
        new = [_Part(part.past, (*part.path, t), part.mass * m) for t, m in apart.items()]
        left = part.mass - sum(one.mass for one in new)
        if len(apart) < len(row) and left > 0:
            skipped = part.without | set(apart)
            if part.path == part.past.tokens:
                skipped |= self._model.row([*window.before, *part.path]).keys() - row.keys()
            new.append(_Part(part.past, part.path, left, skipped))
        return new

    def _try(self, window: Window, parts: list[_Part], rng: random.Random) -> None:
        """Draws a few texts of each part, to see whether they agree."""
        self._draw(window, parts, [PILOT] * len(parts), rng)
        for part in parts:
            part.weigh()

    def _draw(
        self, window: Window, parts: list[_Part], counts: list[int], rng: random.Random
    ) -> None:
        """Draws ``counts`` texts of each part and sets what they give as ``seen``."""
        drawn = [
            (part, self._first(window, part, rng))
            for part, count in zip(parts, counts, strict=True)
            for _ in range(count)
        ]
        for part in parts:
            part.seen = []
        beyond = BEYOND_BYTES
        while drawn:
            paths = [self._written(window, path, beyond, rng) for _, path in drawn]
            texts = [self._teacher.decode(path).decode("utf-8", "replace") for path in paths]
            own, theirs = self._student.encode_each(texts), self._teacher.encode_each(texts)
            again = []
            for (part, _), path, ids, cut in zip(drawn, paths, own, theirs, strict=True):
                if len(ids) < len(window.student_ids) + 1 + BEYOND_TOKENS and beyond < 400:
                    again.append((part, path))
                else:
                    part.seen.append(outcome(window, part.past, path, ids, cut))
            drawn, beyond = again, 3 * beyond

    def _first(self, window: Window, part: _Part, rng: random.Random) -> tuple[int, ...]:
        """The part's path and, where some next tokens are another part's, its next token."""
        if not part.without:
            return part.path
        row = self._model.row([*window.before, *part.path])
        left = [token for token in row if token not in part.without]
        return (*part.path, *rng.choices(left, [row[token] for token in left]))

    def _written(
        self, window: Window, path: tuple[int, ...], beyond: int, rng: random.Random
    ) -> tuple[int, ...]:
        """``path`` and what the teacher writes after it: ``beyond`` bytes beyond the position
        or more, to the end of a character."""
        tokens = [*window.before, *path]
        data = self._teacher.decode(path)
        while len(data) < len(window.said) + beyond or not _is_text(data):
            if len(data) > len(window.said) + beyond + 200:
                break
            tokens.append(self._model.draw(tokens, rng))
            data += self._teacher.token_bytes[tokens[-1]]
        return tuple(tokens[len(window.before) :])


def outcome(
    window: Window, past: Past, path: tuple[int, ...], own: list[int], cut: list[int]
) -> int:
    """What a text gives, whose ids are ``own`` for the student and ``cut`` for the teacher."""
    count = len(window.student_ids)
    if cut[: len(past.tokens)] != list(past.tokens):
        return IMPOSSIBLE  # before this text the teacher's tokenizer writes another past
    if own[:count] == window.student_ids and len(own) > count:
        return own[count]
    # The last tokens touch the end of the text, which the tokenizer would have cut by more.
    near = len(past.tokens) + 2
    return IMPOSSIBLE if cut[:near] == list(path[:near]) else LOST


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _masses(parts: list[_Part]) -> dict[int, float]:
    """Outcome -> mass, without what is impossible, as parts of the whole."""
    masses: dict[int, float] = {}
    for part in parts:
        for outcome in part.seen:
            masses[outcome] = masses.get(outcome, 0.0) + part.mass / len(part.seen)
    masses.pop(IMPOSSIBLE, None)
    total = sum(masses.values())
    return {outcome: mass / total for outcome, mass in masses.items()} if total > 0 else {}

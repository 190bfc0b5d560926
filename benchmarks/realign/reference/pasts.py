"""The ways in which a teacher's tokenizer may have cut the text so far.

A *window* is the end of the text so far, from a place that is a token's beginning on both
sides whatever follows the position. A *past* is what the teacher's tokenizer writes over it,
without the token that reaches beyond the position, for some text that may follow. All of them
are found by trying: whatever the teacher may write next, and many things beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.realign.reference.raw_tokenizer import RawTokenizer

# Probability of a token that the text so far holds and the teacher's row does not.
LEAST = 1e-9
# What may follow, beside what the teacher may write.
FOLLOWING = (
    "", "a", "s ", "ing ", "'s ", "'t", "A", "x y", "Zz", "7", "42", "123 ", "1234 ", " ", "  ",
    "   ", "    x", "  7", " x", " 7", " (", "\t", "\tx", "\n", "\n\n", "\nx", " \n", "\n  x",
    "\r\n", "\r\n\r\n", "\u00a0", "\u00a0x", "\u3000", ".", ",", ". ", "..", "...", "(", ")",
    "()", ")\n", '"', '" ', "'", "''", "`", "``", "```", "-", "--", "----", "_", "_x", "/", "//",
    "\\", "\\\\", "{", "}", "=", "==", "*", "**", "#", "##", "<", ">", "|", ":", ";", "!", "?",
    "$", "%", "&", "@", "\u00e9", "\u0301", "\u00b2", "\u0663", "\u5e74", "\u7684",
    "\u7684\u4eba", "\u3002", "\uff0c", "\u05d0", "\u0627", "\u0644", "\u0915", "\U0001f600",
    "\u200d", "\ufe0f", "\u200d\u2640", "\u20ac", "\u2019s", "\u2026", "\uac00",
)  # fmt: skip
# Texts that one token reaching across the position is tried with, tokens tried of each length.
TRIED = 48
# Bytes at the end of the text so far that a token reaching beyond it may hold.
REACH = 40


@dataclass(frozen=True)
class Window:
    """The text so far, as far as it matters.

    Attributes:
        said: its bytes; they may end inside a character.
        student_ids: the student's tokens over them.
        before: the teacher's tokens before them, the last three at least.
    """

    said: bytes
    student_ids: list[int]
    before: tuple[int, ...]


@dataclass(frozen=True)
class Past:
    """``tokens``, and what the teacher may write next.

    Attributes:
        mass: the probability of the tokens and of a next one that agrees with the bytes that
            are left over, as the part of any scale that all pasts of a window share.
        next_tokens: those that agree, with their probabilities.
    """

    tokens: tuple[int, ...]
    mass: float
    next_tokens: dict[int, float]


class Teacher(Protocol):
    def row(self, before: Sequence[int]) -> dict[int, float]:
        """The probability of each token that may follow."""
        ...


def pasts_of(window: Window, model: Teacher, tokenizer: RawTokenizer) -> list[Past]:
    """All pasts that the teacher's tokenizer may have written."""
    table = tokenizer.token_bytes
    found: dict[tuple[int, ...], None] = {}
    asked: set[str] = set()

    def ask(texts: list[str]) -> bool:
        new = [text for text in dict.fromkeys(texts) if text not in asked]
        asked.update(new)
        before = len(found)
        for ids in tokenizer.encode_each(new):
            size, count = 0, 0
            while count < len(ids) and size + len(table[ids[count]]) <= len(window.said):
                size += len(table[ids[count]])
                count += 1
            found.setdefault(tuple(ids[:count]))
        return len(found) > before

    ends = _whole_ends(window.said, model, window, tokenizer)
    ask([end + following for end in ends for following in FOLLOWING])
    ask([end + rest for end in ends for rest in _rests_of_added(end, tokenizer)])
    while True:
        texts = []
        beginnings = _beginnings(found, window.said, tokenizer)
        for tokens in [*beginnings, *_further(beginnings, window, model, tokenizer)]:
            said = tokenizer.decode(tokens)
            nexts = _next_tokens(window, model, tokenizer, tokens)
            likely = sorted(nexts, key=lambda token: -nexts[token])[:TRIED]
            texts += [text for token in likely if (text := _text(said + table[token])) is not None]
        if not ask([text + following for text in texts for following in ("", " x", "x", "1")]):
            break
    shared = _shared(list(found))
    return [
        Past(tokens, _mass(window, model, tokens, shared) * sum(nexts.values()), nexts)
        for tokens in found
        if (nexts := _next_tokens(window, model, tokenizer, tokens))
    ]


def _rests_of_added(said: str, tokenizer: RawTokenizer) -> list[str]:
    """What is missing of the added tokens whose first characters the text ends with: once one is
    whole, what precedes it is cut without it."""
    near = said[-max(map(len, tokenizer.added), default=0) :]
    return [
        text[length:]
        for text in tokenizer.added
        for length in range(1, len(text))
        if near.endswith(text[:length])
    ]


def _beginnings(
    pasts: Iterable[tuple[int, ...]], said: bytes, tokenizer: RawTokenizer
) -> list[tuple[int, ...]]:
    """The pasts, and what they begin with, as far as a token may reach across the rest."""
    found: dict[tuple[int, ...], None] = {}
    for tokens in pasts:
        for count in range(len(tokens), -1, -1):
            if len(said) - len(tokenizer.decode(tokens[:count])) > REACH:
                break
            found.setdefault(tokens[:count])
    return list(found)


def _further(
    beginnings: list[tuple[int, ...]], window: Window, model: Teacher, tokenizer: RawTokenizer
) -> list[tuple[int, ...]]:
    """Beginnings and one more token that the teacher may write inside the rest: a word of two
    characters is one token, and two once the next character joins the second."""
    table = tokenizer.token_bytes
    found: dict[tuple[int, ...], None] = {}
    for tokens in beginnings:
        rest = window.said[len(tokenizer.decode(tokens)) :]
        for token in model.row([*window.before, *tokens]) if rest else ():
            if rest.startswith(table[token]) and 0 < len(table[token]) < len(rest):
                found.setdefault((*tokens, token))
    return [tokens for tokens in found if tokens not in set(beginnings)]


def _shared(pasts: list[tuple[int, ...]]) -> int:
    """How many tokens all of them begin with."""
    count = 0
    for column in zip(*pasts, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def _next_tokens(
    window: Window, model: Teacher, tokenizer: RawTokenizer, tokens: tuple[int, ...]
) -> dict[int, float]:
    """Those that agree with the bytes that ``tokens`` leave over, and reach beyond them."""
    rest = window.said[len(tokenizer.decode(tokens)) :]
    row = model.row([*window.before, *tokens])
    if not rest:
        return row
    table = tokenizer.token_bytes
    return {
        token: mass
        for token, mass in row.items()
        if table[token].startswith(rest) and len(table[token]) > len(rest)
    }


def _mass(window: Window, model: Teacher, tokens: tuple[int, ...], shared: int) -> float:
    """The probability of the tokens from the ``shared``-th on, however unlikely: they have
    been written."""
    mass = 1.0
    for count in range(shared, len(tokens)):
        row = model.row([*window.before, *tokens[:count]])
        mass *= max(row.get(tokens[count], 0.0), LEAST)
    return mass


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _whole_ends(said: bytes, model: Teacher, window: Window, tokenizer: RawTokenizer) -> list[str]:
    """The text so far as texts: its last character is ended in every way that the teacher's
    tokens know, where it has no end."""
    text = _text(said)
    if text is not None:
        return [text]
    for back in (1, 2, 3):
        head = _text(said[: len(said) - back])
        if head is None:
            continue
        begun = said[len(said) - back :]
        return [head + character for character in _characters(begun)]
    raise ValueError("the text so far is not UTF-8")


def _characters(begun: bytes) -> list[str]:
    """Characters that begin with these bytes, a few hundred at most."""
    missing = (4 if begun[0] >= 0xF0 else 3 if begun[0] >= 0xE0 else 2) - len(begun)
    ends = [b""]
    for place in range(missing):
        values = range(0x80, 0xC0) if place == missing - 1 else (0x80, 0x98, 0xA0, 0xBF)
        ends = [end + bytes([value]) for end in ends for value in values]
    return [text for end in ends if (text := _text(begun + end)) is not None]

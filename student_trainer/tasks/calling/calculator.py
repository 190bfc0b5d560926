"""Arithmetic, exactly, by a parser of its own."""

from __future__ import annotations

import re
from fractions import Fraction

# Characters of an expression, brackets within brackets, bits of a number, and the largest exponent.
LONGEST, DEEPEST, BITS, EXPONENT = 500, 50, 2048, 512
_TOKEN = re.compile(r"\s*(\d[\d,]*(?:\.\d+)?|\.\d+|\*\*|//|[-+*/%^()])")


class CalculatorError(ValueError):
    """An expression that is none, or whose value is too large."""


def calculate(expression: str) -> str:
    """The value of an expression of numbers, ``+ - * / // % ** ^`` and brackets: a whole number as
    it is, any other to twelve digits.

    Raises:
        CalculatorError: it is no such expression, divides by zero, or gets too large.
    """
    if len(expression) > LONGEST:
        raise CalculatorError(f"an expression has at most {LONGEST} characters")
    value = _Parser(_tokens(expression)).whole()
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        raise CalculatorError("the value is too large") from None


def _tokens(expression: str) -> list[str]:
    found, place = [], 0
    text = expression.rstrip()
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise CalculatorError(f"{text[place]!r} is no number, operator or bracket")
        found.append(token[1])
        place = token.end()
    return found


class _Parser:
    """Reads the tokens from left to right, by the usual precedences."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._place < len(self._tokens):
            raise CalculatorError(f"{self._tokens[self._place]!r} stands where nothing can follow")
        return value

    def _next(self, *wanted: str) -> str:
        """The next token, if it is one of these; else an empty text."""
        if self._place < len(self._tokens) and self._tokens[self._place] in wanted:
            self._place += 1
            return self._tokens[self._place - 1]
        return ""

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._next("+", "-"):
            other = self._product()
            value = _bounded(value + other if operator == "+" else value - other)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while operator := self._next("*", "/", "//", "%"):
            other = self._signed()
            if operator != "*" and not other:
                raise CalculatorError("division by zero")
            if operator == "*":
                value = value * other
            elif operator == "/":
                value = value / other
            elif operator == "//":
                value = Fraction(value // other)
            else:
                value = value % other
            value = _bounded(value)
        return value

    def _signed(self) -> Fraction:
        negative = False
        while sign := self._next("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._next("**", "^"):
            return base
        self._deeper()
        exponent = self._signed()
        self._depth -= 1
        if exponent.denominator != 1 or abs(exponent) > EXPONENT:
            raise CalculatorError(f"an exponent is a whole number of at most {EXPONENT}")
        if not base and exponent < 0:
            raise CalculatorError("division by zero")
        if _bits(base) * abs(int(exponent)) > BITS:
            raise CalculatorError("the value is too large")
        return _bounded(base ** int(exponent))

    def _atom(self) -> Fraction:
        if self._next("("):
            self._deeper()
            value = self._sum()
            self._depth -= 1
            if not self._next(")"):
                raise CalculatorError("a bracket is not closed")
            return value
        if self._place == len(self._tokens):
            raise CalculatorError("the expression ends where a number has to follow")
        token = self._tokens[self._place]
        if not (token[0].isdigit() or token[0] == "."):
            raise CalculatorError(f"{token!r} stands where a number has to")
        self._place += 1
        return _bounded(Fraction(token.replace(",", "")))

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise CalculatorError(f"at most {DEEPEST} brackets may be open")


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > BITS:
        raise CalculatorError("the value is too large")
    return value

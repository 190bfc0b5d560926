"""Texts on which tokenizers differ, and the first of them that two encode otherwise.

Two tokenizers of one fingerprint give every text the same ids. Two of different
fingerprints may all the same: that cannot be decided from their files, so it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

# From texts to the ids of each, without special tokens that no text spells out.
Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]

PROBE: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    " a text that begins with a space",
    "  and one with two",
    "\u2581a piece of SentencePiece\u2581\u2581typed",
    "a  b   c    d     e      f",
    "tabs\tand\t\tmore\t \t of them",
    "line\nends\n\nand\n\n\nmore\n \n  of them \n",
    "CRLF\r\nas on\r\n\r\nother systems\rand\r\ra bare CR",
    "trailing space ",
    "trailing spaces    ",
    "\n",
    " ",
    "   ",
    "\u00a0no-break\u00a0space, \u2003em space, \u3000ideographic, \u200bzero width, \u2028line",
    "it's we're I've I'm you'll he'd IT'S WE'RE I'VE I'M YOU'LL HE'D",
    "it\u2019s typed with typographic quotes, \u201clike this\u201d",
    "'s't 'S 'tis rock'n'roll o'clock",
    "0 1 12 123 1234 12345 1234567890 3.14159 -2.5e-10 1,000,000 0x1F 10%",
    "\u0661\u0662\u0663 \u09e7\u09e8\u09e9 \u2160\u2161 \u00bd \u00b2\u00b3 \uff11\uff12",
    "2026-11-29T05:53:12Z and v2.0.1-rc3",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # a comment\n\n\tif x != 0: pass\n",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] ^ (c[i] << 2); } // done",
    '{"key": [1, 2.50, null, true], "nested": {"a": "b\\n"}}',
    "SELECT * FROM t WHERE a<>'b' AND c>=10;",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt",
    "<b>bold</b> &amp; **markdown** `code` ~~~ --- ### ___",
    "$\\frac{a}{b} + \\sqrt{x^2}$ and $$E = mc^2$$",
    "!!! ??? ... ,,, ;;; ((())) [[[]]] {{{}}} ///",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE iPhone15Pro",
    "naïve café Ünïcödé Ærøskøbing Łódź İstanbul ẞ ﬁ ﬀ Å",
    "cafe\u0301 A\u030a u\u0308\u0304 e\u0301\u0323 \u1100\u1161\u11a8",
    "=\u0338 >\u0338 <\u0338 a\u0338",
    "你好\uff0c世界。学习语言需要耐心。",
    "日本語のテキスト、カタカナとﾊﾝｶｸ。",
    "한국어 텍스트입니다.",
    "Привет, мир! Ещё раз.",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Καλημέρα κόσμε, ΑΘΗΝΑ",
    "🙂 😀😀 👍🏽 👩\u200d👩\u200d👧 🇫🇷🇩🇪 ❤\ufe0f 1\ufe0f\u20e3",
    "\U00020000\U0001f9ff\U0010ffff \ufffd \ufeff",
    "\x00\x01\x1f\x7f\x80\x9f",
    "a\u00adb soft hyphen, \u2011 no-break hyphen, \u2014 dash, \u2026 dots",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "internationalization antidisestablishmentarianism xqzjkvw Donaudampfschifffahrt",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<s>[INST] Hi [/INST]</s> <bos><start_of_turn>user\nHi<end_of_turn>",
    "<unk> <pad> <mask> <s> </s> [UNK] [MASK] <0x0A> <think>x</think> <tool_call>",
)
# Bounds of the added tokens that are spelt out besides: how many, characters of one, and
# characters of all.
MAX_ADDED, MAX_LENGTH, MAX_CHARACTERS = 20_000, 128, 2**18
SHOWN_TEXT, SHOWN_IDS = 60, 6


@dataclass(frozen=True)
class EncodesOtherwise:
    """Attributes:
    text: the first text of the probe that two tokenizers encode otherwise.
    place: the first token that differs.
    one, other: the ids of each.
    """

    text: str
    place: int
    one: tuple[int, ...]
    other: tuple[int, ...]

    def describe(self) -> str:
        """Like: '<mask>' is [4] and [235322, 10217, 235313]."""
        text = self.text if len(self.text) <= SHOWN_TEXT else f"{self.text[:SHOWN_TEXT]}..."
        after = f" from token {self.place + 1} on" if self.place else ""
        return f"{text!r} is{after} {self._ids(self.one)} and {self._ids(self.other)}"

    def _ids(self, ids: tuple[int, ...]) -> str:
        rest = ids[self.place :]
        more = ", ..." if len(rest) > SHOWN_IDS else ""
        return f"[{', '.join(map(str, rest[:SHOWN_IDS]))}{more}]"


def probe_texts(added: Iterable[str]) -> list[str]:
    """``PROBE``, and the text of each added token alone, between letters and between spaces;
    of very long and very many tokens only some."""
    short = [token for token in dict.fromkeys(added) if len(token) <= MAX_LENGTH][:MAX_ADDED]
    until = accumulate(map(len, short))
    chosen = [token for token, end in zip(short, until, strict=True) if end <= MAX_CHARACTERS]
    spelt = [text for token in chosen for text in (token, f"a{token}b", f"a  {token}  b")]
    return [*PROBE, *spelt]


def first_difference(one: Encode, other: Encode, added: Iterable[str]) -> EncodesOtherwise | None:
    """The first text that the two encode otherwise; None when they agree on all.

    Args:
        added: texts of the added tokens of both.
    """
    texts = probe_texts(added)
    for text, a, b in zip(texts, one(texts), other(texts), strict=True):
        if list(a) != list(b):
            pairs = enumerate(zip(a, b, strict=False))
            place = next((p for p, (x, y) in pairs if x != y), min(len(a), len(b)))
            return EncodesOtherwise(text, place, tuple(a), tuple(b))
    return None

"""The alphabet in which byte-level BPE tokenizers spell the 256 byte values.

A tokenizer.json holds tokens as text, and most bytes are no text by themselves. GPT-2's
table, which all byte-level tokenizers use, gives every byte one printable character:
most printable bytes are written as themselves, the others as U+0100 and up, so that a
space is U+0120.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache


@cache
def byte_alphabet() -> Mapping[str, int]:
    """The byte value (0 to 255) of each of the 256 characters, printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + place): byte for place, byte in enumerate(others)}

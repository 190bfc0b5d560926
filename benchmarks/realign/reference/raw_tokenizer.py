"""A tokenizer.json as the ``tokenizers`` library reads it: whole texts in, ids out.

Nothing of the product is used here. Three things are set aside, as the product says it does:
a Unicode normaliser (what a model wrote is not changed), special tokens (their text is text),
and the white space that some added tokens take along.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# Texts kept with their ids; when there are more, they are forgotten.
MOST_KNOWN = 100_000


class RawTokenizer:
    """A tokenizer of V ids.

    Attributes:
        token_bytes: V entries; empty where an id stands for no text.
        added: texts that are taken out of a text before the rest of it is cut.
    """

    def __init__(self, file: Path, recognised: Collection[str] = ()) -> None:
        """``recognised``: texts of added tokens that are read as the token nevertheless."""
        document = json.loads(file.read_text(encoding="utf-8"))
        model = document["model"]
        fallback = bool(model.get("byte_fallback"))
        document_added = document["added_tokens"]
        added = [
            token | {"lstrip": False, "rstrip": False}
            for token in document_added
            if token["content"] in recognised
            or (not token["special"] and token["content"] in model["vocab"])
        ]
        spelling = _spell_piece if fallback else _spell_byte_level()
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        document |= {
            "added_tokens": added,
            "normalizer": normalizer if fallback else None,
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._tokenizer = Tokenizer.from_str(json.dumps(document))
        self.added = tuple(token["content"] for token in added)
        every_added = (token["id"] for token in document_added)
        size = 1 + max([*model["vocab"].values(), *every_added])
        self.token_bytes = [b""] * size
        for text, token in model["vocab"].items():
            self.token_bytes[token] = spelling(text)
        # The library numbers added tokens anew where others have been left out.
        self._renumbered: dict[int, int] = {}
        self._known: dict[str, list[int]] = {}
        for one in added:
            if one["content"] not in model["vocab"]:
                self.token_bytes[one["id"]] = one["content"].encode()
                self._renumbered[self._tokenizer.token_to_id(one["content"])] = one["id"]

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text."""
        return self.encode_each([text])[0]

    def encode_each(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, which are kept: many are drawn more than once."""
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            if len(known) > MOST_KNOWN:
                known = self._known = {text: known[text] for text in texts if text in known}
            found = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
            renumbered = self._renumbered
            for text, one in zip(new, found, strict=True):
                ids = one.ids
                known[text] = [renumbered.get(t, t) for t in ids] if renumbered else ids
        return [known[text] for text in texts]

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids, which may begin or end inside a character."""
        return b"".join(self.token_bytes[token] for token in ids)


def _spell_piece(text: str) -> bytes:
    """The bytes of a SentencePiece token: ``<0x0A>`` is a byte, U+2581 a space."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def _spell_byte_level() -> Any:
    """The bytes of a byte-level token: printable bytes stand for themselves, the others for
    the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(0x100 + place): byte for place, byte in enumerate(others)}

    def spell(text: str) -> bytes:
        if not all(character in table for character in text):
            return text.encode()  # an added token that the vocabulary lists
        return bytes(table[character] for character in text)

    return spell

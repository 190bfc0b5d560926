"""How much text one token can stand for, read from a tokenizer.json before any is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teacher_proto.program.byte_alphabet import byte_alphabet

# NFC composes at most four code points of up to four bytes each into one of at least two
# bytes, or turns one of three bytes into one of one byte.
NFC_SHRINKS = 8
KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"}


def longest_token(document: Mapping[str, Any]) -> int | None:
    """The most bytes of text, in UTF-8, that one token can stand for.

    None where no such bound is known: the tokenizer may drop text, or read text of any
    length as one token. It is known for BPE tokenizers that have a token for every byte,
    no normaliser but NFC, and pre-tokenizers that keep every character.
    """
    added = document.get("added_tokens") or ()
    shrinks = _shrinks(document.get("normalizer"))
    keeps = _keeps(document.get("pre_tokenizer"))
    if shrinks is None or not keeps or not _has_every_byte(document):
        return None
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None  # such a token takes any number of spaces around it
    contents = [*document["model"]["vocab"], *(token["content"] for token in added)]
    return shrinks * max(len(text.encode("utf-8", "surrogatepass")) for text in contents)


def _shrinks(normalizer: Mapping[str, Any] | None) -> int | None:
    """The largest factor by which the normaliser shrinks a text, in bytes; None: no bound."""
    match normalizer:
        case None | {"type": "Prepend"}:
            return 1
        case {"type": "NFC"}:
            return NFC_SHRINKS
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return 1 if len(old.encode()) <= len(new.encode()) else None
        case {"type": "Sequence", "normalizers": list(parts)}:
            product: int | None = 1
            for factor in map(_shrinks, parts):
                product = None if product is None or factor is None else product * factor
            return product
        case _:
            return None


def _keeps(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether every character of a text reaches the model."""
    match pre_tokenizer:
        case None:
            return True
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return all(map(_keeps, parts))
        case {"type": kind}:
            return kind in KEEPING_PRE_TOKENIZERS and pre_tokenizer.get("behavior") != "Removed"
        case _:
            return False


def _has_every_byte(document: Mapping[str, Any]) -> bool:
    """Whether the model can spell every text; it would drop others or make them one token."""
    model = document["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    return _writes_bytes(document.get("pre_tokenizer")) and all(
        letter in model["vocab"] for letter in byte_alphabet()
    )


def _writes_bytes(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return any(map(_writes_bytes, parts))
        case {"type": kind}:
            return bool(kind == "ByteLevel")
        case _:
            return False

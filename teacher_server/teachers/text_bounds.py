"""How much text one token can stand for, told by a tokenizer.json before any is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teacher_server.realign.pair.encoder import byte_alphabet

# NFC writes at most four code points of up to four bytes as one of at least two bytes,
# or one of three bytes as one of one byte.
NFC_SHRINKS = 8
KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"}


def longest_token(document: Mapping[str, Any]) -> int | None:
    """Bytes of a caller's text, in UTF-8, that one token can stand for at most.

    None where there is no such bound: the tokenizer may drop text, or read any length of
    text as one token. Known are BPE tokenizers with a token for every byte, no
    normaliser but NFC, and pre-tokenizers that keep every character.
    """
    added = document.get("added_tokens") or ()
    shrinks = _shrinks(document.get("normalizer"))
    keeps = _keeps(document.get("pre_tokenizer"))
    if shrinks is None or not keeps or not _has_every_byte(document):
        return None
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None  # it takes the spaces beside it along
    contents = [*document["model"]["vocab"], *(token["content"] for token in added)]
    return shrinks * max(len(text.encode("utf-8", "surrogatepass")) for text in contents)


def _shrinks(normalizer: Mapping[str, Any] | None) -> int | None:
    """Times that a text has at most as many bytes before as after; None: no bound."""
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
    """Whether no text is unknown to the model, which drops it or makes one token of it."""
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

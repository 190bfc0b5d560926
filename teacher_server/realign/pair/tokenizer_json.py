"""Reading a tokenizer.json: its kind, the bytes of its tokens, its special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from teacher_proto.errors import ConfigurationError
from teacher_proto.fingerprint.model import added_ids
from teacher_proto.program.byte_alphabet import byte_alphabet

# byte_level: tokens are spelt in the byte alphabet. byte_fallback: tokens are text, with
# a token like <0x0A> for every byte (SentencePiece).
Kind = Literal["byte_level", "byte_fallback"]
# Four times what the largest published vocabulary has.
MAX_ID = 2**20


@dataclass(frozen=True)
class ParsedTokenizer:
    """A tokenizer.json of V ids.

    Attributes:
        content: what the file holds.
        token_bytes: V entries; empty where an id is special or has no token.
        specials: special id -> its text.
    """

    content: Mapping[str, Any]
    kind: Kind
    token_bytes: tuple[bytes, ...]
    specials: Mapping[int, str]


def parse_tokenizer(content: Mapping[str, Any]) -> ParsedTokenizer:
    """Reads what a tokenizer.json holds that has a fingerprint.

    Raises:
        ConfigurationError: it is of a kind that cannot be realigned, or contradicts itself.
    """
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise refused(f"its model is {model.get('type')!r}, not BPE")
    kind = _kind(content)
    vocab: dict[str, int] = model["vocab"]
    added: Sequence[Mapping[str, Any]] = content.get("added_tokens") or ()
    size = 1 + max([*vocab.values(), *(token["id"] for token in added)], default=-1)
    if not 0 < size <= MAX_ID:
        raise refused(f"its ids go up to {size - 1}; 0..{MAX_ID - 1} can be read")
    specials = _specials(added, vocab)
    table = [b""] * size
    for text, token in vocab.items():
        if token not in specials:
            table[token] = _token_bytes(text, kind)
        elif specials[token] != text:
            raise refused(f"id {token} is {specials[token]!r} and another token, {text!r}")
    _check_numbers(added, vocab)
    return ParsedTokenizer(content, kind, tuple(table), specials)


def refused(what: str) -> ConfigurationError:
    """The error for a tokenizer that cannot be realigned, for the reason ``what``."""
    return ConfigurationError(
        f"the tokenizer cannot be realigned: {what}",
        where="tokenizer.json",
        fix="give a BPE tokenizer.json that is byte-level or has byte fallback",
    )


def _kind(content: Mapping[str, Any]) -> Kind:
    for part in ("pre_tokenizer", "decoder"):
        if '"ByteLevel"' in json.dumps(content.get(part)):
            return "byte_level"
    vocab = content["model"]["vocab"]
    fallback = all(f"<0x{b:02X}>" in vocab for b in range(0x80, 0x100))
    if content["model"].get("byte_fallback") and fallback:
        return "byte_fallback"
    raise refused("it is neither byte-level nor has a token for every byte to fall back on")


def _specials(added: Sequence[Mapping[str, Any]], vocab: Mapping[str, int]) -> dict[int, str]:
    """Added tokens that are flagged special, or that the model's vocabulary does not hold."""
    specials: dict[int, str] = {}
    for token in added:
        text, number = token["content"], token["id"]
        if number < 0 or not text:
            raise refused(f"its added token {text!r} has id {number}")
        in_model = vocab.get(text)
        if in_model is not None and in_model != number:
            raise refused(f"{text!r} has id {number} and, in the model, {in_model}")
        if specials.get(number, text) != text:
            raise refused(f"id {number} is {specials[number]!r} and {text!r}")
        if token.get("special") or in_model is None:
            specials[number] = text
    return specials


def _check_numbers(added: Sequence[Mapping[str, Any]], vocab: Mapping[str, int]) -> None:
    """Raises ConfigurationError where the library gives an added token another id."""
    given = added_ids(vocab, (token["content"] for token in added))
    for token in added:
        text, number = token["content"], token["id"]
        if given[text] != number:
            raise refused(
                f"its added token {text!r} states id {number}; the tokenizers library, which "
                f"numbers them in the order of the file, gives it {given[text]}. What the library "
                "writes, after reading this file, can be"
            )


def _token_bytes(text: str, kind: Kind) -> bytes:
    """The bytes that a token of the model's vocabulary stands for."""
    if kind == "byte_level":
        alphabet = byte_alphabet()
        try:
            return bytes(alphabet[character] for character in text)
        except KeyError:
            return text.encode("utf-8", "surrogatepass")
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode("utf-8", "surrogatepass")

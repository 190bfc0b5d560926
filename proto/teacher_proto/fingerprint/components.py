"""The canonical normalizers and pre-tokenizers of a tokenizer.json: one list each, in the
order in which they act (docs/fingerprint.md).

A list holds no ``Sequence``, nothing that never changes a text, no field that changes
offsets only, and no field that is left at its default in one file and written in another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from teacher_proto.fingerprint.failure import unreadable

Component = dict[str, Any]

# Fields with the value that they have when a file leaves them out.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ByteLevel": {"use_regex": True},
    "Metaspace": {"prepend_scheme": "always", "split": True},
    "Punctuation": {"behavior": "Isolated"},
    "FixedLength": {"length": 5},
}
# Fields that no id depends on.
IGNORED = {
    "ByteLevel": ("trim_offsets",),
    "Metaspace": ("str_rep", "add_prefix_space"),
}
# What ByteLevel itself splits by when its use_regex is true.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{end}|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{end}|"
    r"{digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LOWER = (
    rf"{_CONTRACTED}|"
    r"[^\r\n\p{L}\p{N}]?\p{L}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Expressions that match every character of every text, so that nothing is between matches.
TOTAL = frozenset(
    {
        GPT2,
        _LOWER.replace("{digits}", r"\p{N}"),
        _LOWER.replace("{digits}", r"\p{N}{1,3}"),
        _CASED.replace("{digits}", r"\p{N}").replace("{end}", ""),
        _CASED.replace("{digits}", r"\p{N}{1,3}").replace("{end}", f"{_CONTRACTED}?"),
    }
)
# A regular expression of such characters matches itself and nothing else.
_LITERAL = re.compile(r"[A-Za-z0-9 \u0080-\U0010ffff]+")


def normalizers(node: object) -> list[Component]:
    """Of the "normalizer" of a tokenizer.json; raises ConfigurationError."""
    found = [_normalizer(component) for component in _flat(node, "normalizer", "normalizers")]
    return [component for component in found if not _changes_nothing(component)]


def pre_tokenizers(node: object, before: list[Component]) -> list[Component]:
    """Of the "pre_tokenizer" of a tokenizer.json; raises ConfigurationError.

    Args:
        before: its canonical normalizers.
    """
    found: list[Component] = []
    for component in _flat(node, "pre_tokenizer", "pretokenizers"):
        one = _pre_tokenizer(component)
        if found and _is_gpt2_split(found[-1]) and one == _byte_level(use_regex=False):
            found[-1] = _byte_level(use_regex=True)
        elif found or not _never_splits(one, before):
            found.append(one)
    return found


def ends_in_bytes(pre: list[Component]) -> bool:
    """Whether the model reads nothing but the 256 characters of the byte alphabet."""
    return bool(pre) and pre[-1]["type"] == "ByteLevel"


def _flat(node: object, name: str, inside: str) -> list[Mapping[str, Any]]:
    if node is None:
        return []
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        raise unreadable(f"has no readable {name}")
    if node["type"] != "Sequence":
        return [node]
    parts = node.get(inside)
    if not isinstance(parts, list):
        raise unreadable(f"has a Sequence without {inside}")
    return [one for part in parts for one in _flat(part, name, inside)]


def _normalizer(node: Mapping[str, Any]) -> Component:
    one = _fields(node)
    if one["type"] == "BertNormalizer" and "lowercase" in one:
        one.setdefault("strip_accents", one["lowercase"])
    # In what replaces a regular expression's match, "$" names a group.
    if one["type"] == "Replace" and "$" not in str(one.get("content")):
        one["pattern"] = _pattern(one.get("pattern"))
    return one


def _pre_tokenizer(node: Mapping[str, Any]) -> Component:
    one = _fields(node)
    if one["type"] == "Metaspace" and node.get("prepend_scheme") is None:
        one["prepend_scheme"] = "never" if node.get("add_prefix_space") is False else "always"
    if one["type"] == "Split":
        one["pattern"] = _pattern(one.get("pattern"))
        removes_between = one.get("behavior") == "Removed" and one.get("invert") is True
        if removes_between and _regex(one) in TOTAL:
            one |= {"behavior": "Isolated", "invert": False}
    return one


def _fields(node: Mapping[str, Any]) -> Component:
    kind = node["type"]
    given = {name: value for name, value in node.items() if value is not None}
    ignored = IGNORED.get(kind, ())
    return {
        name: value
        for name, value in {**DEFAULTS.get(kind, {}), **given}.items()
        if name not in ignored
    }


def _pattern(pattern: object) -> object:
    if isinstance(pattern, dict) and set(pattern) == {"Regex"}:
        regex = pattern["Regex"]
        if isinstance(regex, str) and _LITERAL.fullmatch(regex):
            return {"String": regex}
    return pattern


def _regex(split: Component) -> object:
    pattern = split.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _changes_nothing(one: Component) -> bool:
    strips = one.get("strip_left"), one.get("strip_right")
    return one["type"] == "Strip" and strips == (False, False)


def _byte_level(use_regex: bool) -> Component:
    return {"type": "ByteLevel", "use_regex": use_regex, "add_prefix_space": False}


def _is_gpt2_split(one: Component) -> bool:
    how = one.get("behavior"), one.get("invert")
    return one["type"] == "Split" and how == ("Isolated", False) and _regex(one) == GPT2


def _never_splits(one: Component, before: list[Component]) -> bool:
    """Whether it splits at a character that the last normalizer has replaced."""
    if one["type"] != "Split" or one.get("invert") is not False or not before:
        return False
    gone = _string(before[-1]) if before[-1]["type"] == "Replace" else ""
    return len(gone) == 1 and gone in _string(one) and gone not in str(before[-1].get("content"))


def _string(one: Component) -> str:
    pattern = one.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else ""

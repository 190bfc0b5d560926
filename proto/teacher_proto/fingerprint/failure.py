"""The error for a tokenizer.json that has no fingerprint."""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError


def unreadable(what: str) -> ConfigurationError:
    """``what`` goes on from "tokenizer.json"."""
    return ConfigurationError(
        what,
        where="tokenizer.json",
        fix="give the tokenizer.json of a fast tokenizer "
        "(tokenizer.backend_tokenizer.to_str() in transformers)",
    )

"""How a chat template ends an assistant's turn: what it writes after a reply, found by
rendering short conversations with it.

Nothing else says it for every model: a base model's tokenizer may know only the end of a
text, and generation_config.json lists whatever somebody wrote there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

QUESTION, REPLY, FOLLOW_UP = "Which word?", "A reply of words", "And the next one?"
# What may precede the reply: templates want a user, a system message first, or no turn before
# it at all.
BEFORE = (("user",), ("system", "user"), ())


@dataclass(frozen=True)
class ReplyEnd:
    """The end of an assistant's turn.

    Attributes:
        token_id: the added token that ends it; None where it ends with text alone, or is not
            known.
        text: where no token ends it, the text that does: what always follows a reply, or what
            the next turn begins with where that is white space alone. Else empty.
        refusal: why the template rendered no conversation; None when it did, and where there
            is no template.
    """

    token_id: int | None = None
    text: str = ""
    refusal: str | None = None


def reply_end(
    tokenizer: Any, known: Collection[int] = (), arguments: Mapping[str, Any] | None = None
) -> ReplyEnd:
    """Asks the chat template of a transformers tokenizer.

    The end is what follows a reply both at the end of a conversation and within it; else what
    follows it at the end; else what follows it within, which may be how the next turn begins:
    a model that writes no end of its turn goes on with that.

    Args:
        known: ids that are known to end a response. Among several added tokens these count
            first; else the last of those that stand together.
        arguments: of the template.
    """
    if not tokenizer.chat_template:
        return ReplyEnd()
    refusal = "it leaves the reply out"
    for before in BEFORE:
        for as_parts in (False, True):
            try:
                last = _after_reply(tokenizer, before, as_parts, False, arguments)
            except Exception as error:  # a template is a program: it raises what it likes
                refusal = str(error).strip().partition("\n")[0] or type(error).__name__
                continue
            if last is None:
                continue
            try:
                within = _after_reply(tokenizer, before, as_parts, True, arguments)
            except Exception:  # it may take no second question
                within = None
            return _chosen(tokenizer, known, last, within)
    return ReplyEnd(refusal=refusal)


def _after_reply(
    tokenizer: Any,
    before: Sequence[str],
    as_parts: bool,
    followed: bool,
    arguments: Mapping[str, Any] | None,
) -> str | None:
    """The text after the reply, up to the next question's own text when it is ``followed`` by
    one; None where the rendered conversation lacks them."""
    turns = [(role, QUESTION) for role in before] + [("assistant", REPLY)]
    turns += [("user", FOLLOW_UP)] if followed else []
    conversation = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
        for role, text in turns
    ]
    text = str(tokenizer.apply_chat_template(conversation, tokenize=False, **(arguments or {})))
    _, found, after = text.rpartition(REPLY)
    if not found or (followed and FOLLOW_UP not in after):
        return None
    return after.partition(FOLLOW_UP)[0] if followed else after


def _chosen(tokenizer: Any, known: Collection[int], last: str, within: str | None) -> ReplyEnd:
    at_end, between = _added(tokenizer, last), _added(tokenizer, within or "")
    ids_at_end, ids_between = [[t for _, t in found] for found in (at_end, between)]
    both = at_end[: _agreeing(ids_at_end, ids_between)]
    for places, of_next in ((both, False), (at_end, False), (between, True)):
        if not places:
            continue
        ids = [token for _, token in places]
        named = [token for token in ids if token in known]
        if named or of_next:
            return ReplyEnd((named or ids)[0])
        end = 0
        while end + 1 < len(places) and places[end + 1][0] == places[end][0] + 1:
            end += 1
        return ReplyEnd(ids[end])
    always = last if within is None else last[: _agreeing(last, within)]
    return ReplyEnd(text=always if always.strip() else within or last)


def _added(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """(place, id) of the added tokens among the tokens of a text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    added = tokenizer.added_tokens_decoder
    return [(place, token) for place, token in enumerate(ids) if token in added]


def _agreeing(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

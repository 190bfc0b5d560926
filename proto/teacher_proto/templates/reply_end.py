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


# (place, id) of added tokens among the tokens of a text.
Places = list[tuple[int, int]]


@dataclass(frozen=True)
class Around:
    """What a template writes around the texts of a conversation.

    Attributes:
        opening: before the first turn's own text.
        before_reply: between the question's own text and the reply's.
        after: after the reply, up to the next question's own text where there is one.
    """

    opening: str
    before_reply: str
    after: str


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
    a model that writes no end of its turn goes on with that. Behind an end, the beginning of
    another turn does not count: some templates write a generation prompt after every reply.

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
                last = _around_reply(tokenizer, before, as_parts, False, arguments)
            except Exception as error:  # a template is a program: it raises what it likes
                refusal = str(error).strip().partition("\n")[0] or type(error).__name__
                continue
            if last is None:
                continue
            try:
                within = _around_reply(tokenizer, before, as_parts, True, arguments)
            except Exception:  # it may take no second question
                within = None
            return _chosen(tokenizer, known, last, within)
    return ReplyEnd(refusal=refusal)


def _around_reply(
    tokenizer: Any,
    before: Sequence[str],
    as_parts: bool,
    followed: bool,
    arguments: Mapping[str, Any] | None,
) -> Around | None:
    """The conversation with the reply, and with another question when it is ``followed`` by
    one; None where the rendered conversation lacks them."""
    turns = [(role, QUESTION) for role in before] + [("assistant", REPLY)]
    turns += [("user", FOLLOW_UP)] if followed else []
    conversation = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
        for role, text in turns
    ]
    text = str(tokenizer.apply_chat_template(conversation, tokenize=False, **(arguments or {})))
    until, found, after = text.rpartition(REPLY)
    if not found or (followed and FOLLOW_UP not in after):
        return None
    opening, _, before_reply = until.partition(QUESTION)
    return Around(
        opening,
        before_reply.rpartition(QUESTION)[2],
        after.partition(FOLLOW_UP)[0] if followed else after,
    )


def _chosen(
    tokenizer: Any, known: Collection[int], last: Around, within: Around | None
) -> ReplyEnd:
    at_end, between = _ends(tokenizer, last, within)
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
    if within is None:
        return ReplyEnd(text=last.after)
    always = last.after[: _agreeing(last.after, within.after)]
    return ReplyEnd(text=always if always.strip() else within.after or last.after)


def _ends(tokenizer: Any, last: Around, within: Around | None) -> tuple[Places, Places]:
    """The added tokens that may end a reply, where it is the last turn and where it is not:
    those before the beginning of another turn, or that beginning itself where it is the
    first and no generation prompt."""
    at_end = _added(tokenizer, last.after)
    between = _added(tokenizer, within.after) if within else []
    after = {token for _, token in (*at_end, *between)} - {tokenizer.bos_token_id}
    opens = [token for _, token in _added(tokenizer, last.opening) if token in after][:1]
    prompts: set[int] = set()
    if within:
        before_reply = {token for _, token in _added(tokenizer, last.before_reply)}
        prompts = before_reply.difference(token for _, token in between)
    at_end = list(takewhile(lambda one: one[1] not in prompts, at_end))
    return _until(opens, at_end), _until(opens, between)


def _until(opens: Collection[int], places: Places) -> Places:
    return places[:1] + list(takewhile(lambda one: one[1] not in opens, places[1:]))


def _added(tokenizer: Any, text: str) -> Places:
    """The added tokens of a text that are not white space."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    added = tokenizer.added_tokens_decoder
    return [
        (place, token)
        for place, token in enumerate(ids)
        if token in added and added[token].content.strip()
    ]


def _agreeing(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

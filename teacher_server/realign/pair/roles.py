"""What special tokens are for: the roles that the caller gives, else their known spelling.

A role (end of turn, end of text, opening or closing of thinking) is what makes a special
token of one tokenizer the counterpart of one of another, whatever the two are called.
"""

from __future__ import annotations

from collections.abc import Mapping

from teacher_proto.templates import thinking
from teacher_proto.types import SpecialRole

# Spellings in use by the model families of 2024-2026. A tokenizer file names its special
# tokens, and does not state what they are for.
SPELLINGS: dict[str, SpecialRole] = {
    **dict.fromkeys(
        ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>"),
        SpecialRole.TURN_END,
    ),
    **dict.fromkeys(
        (
            "<|endoftext|>",
            "<|end_of_text|>",
            "</s>",
            "<eos>",
            "<｜end▁of▁sentence｜>",
        ),
        SpecialRole.END_OF_TEXT,
    ),
    **dict.fromkeys(
        ("<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>"),
        SpecialRole.BEGIN_OF_TEXT,
    ),
    **thinking.ROLES,
    **dict.fromkeys(
        ("<pad>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
        SpecialRole.PADDING,
    ),
}
TERMINATORS = (SpecialRole.TURN_END, SpecialRole.END_OF_TEXT)
# Roles that have a counterpart in other tokenizers.
MAPPED = (*TERMINATORS, SpecialRole.THINK_OPEN, SpecialRole.THINK_CLOSE)


def role_table(
    specials: Mapping[int, str], given: Mapping[int, SpecialRole]
) -> dict[int, SpecialRole]:
    """The role of each special id; a role that the caller gives wins over the spelling. Where
    the caller gives the end of a turn, a token that is only spelt like one has no role."""
    spelt = dict(SPELLINGS)
    if SpecialRole.TURN_END in given.values():
        spelt = {text: r for text, r in spelt.items() if r is not SpecialRole.TURN_END}
    return {
        token: given.get(token, spelt.get(text, SpecialRole.OTHER))
        for token, text in specials.items()
    }


def counterpart(role: SpecialRole, roles: Mapping[int, SpecialRole]) -> int | None:
    """The lowest id in the other tokenizer's ``roles`` that has this role, or None.

    A tokenizer with only one kind of terminator uses it for both: the end of a turn and
    the end of a text stand in for each other where one is missing.
    """
    if role not in MAPPED:
        return None
    wanted = [role]
    if role in TERMINATORS:
        wanted += [other for other in TERMINATORS if other is not role]
    for one in wanted:
        found = sorted(token for token, has in roles.items() if has is one)
        if found:
            return found[0]
    return None

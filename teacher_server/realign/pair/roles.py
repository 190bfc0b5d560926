"""What special tokens mean: by what the caller says, else by their well-known spelling."""

from __future__ import annotations

from collections.abc import Mapping

from teacher_proto.types import SpecialRole

# Spellings in use by the model families of 2024-2026. A tokenizer file does not
# say what its special tokens are for.
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
    **dict.fromkeys(("<think>", "[THINK]"), SpecialRole.THINK_OPEN),
    **dict.fromkeys(("</think>", "[/THINK]"), SpecialRole.THINK_CLOSE),
    **dict.fromkeys(
        ("<pad>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
        SpecialRole.PADDING,
    ),
}
TERMINATORS = (SpecialRole.TURN_END, SpecialRole.END_OF_TEXT)
# A role that other tokenizers have a counterpart for.
MAPPED = (*TERMINATORS, SpecialRole.THINK_OPEN, SpecialRole.THINK_CLOSE)


def role_table(
    specials: Mapping[int, str], given: Mapping[int, SpecialRole]
) -> dict[int, SpecialRole]:
    """Role of each special id; what the caller gives wins over the spelling."""
    return {
        token: given.get(token, SPELLINGS.get(text, SpecialRole.OTHER))
        for token, text in specials.items()
    }


def counterpart(role: SpecialRole, roles: Mapping[int, SpecialRole]) -> int | None:
    """The lowest id of the other side that has this role.

    A tokenizer with only one kind of terminator uses it for both.
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

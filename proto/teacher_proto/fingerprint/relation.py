"""How two tokenizers relate, in words: which parts of their files differ, and whether the
probe tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from teacher_proto.fingerprint.difference import part_differences
from teacher_proto.fingerprint.parts import canonical_parts, content_of
from teacher_proto.fingerprint.probe import Encode, EncodesOtherwise, first_difference

EQUAL = "every text of the probe has the same ids in both"


@dataclass(frozen=True)
class Difference:
    """Two tokenizers of different fingerprints.

    Attributes:
        parts: a phrase for each part that differs, with the first difference.
        text: the first text of the probe that the two encode otherwise; None where they
            agree on all of them.
    """

    parts: tuple[str, ...]
    text: EncodesOtherwise | None

    def describe(self) -> str:
        """One sentence; what the first tokenizer has comes before what the second has."""
        text = EQUAL if self.text is None else self.text.describe()
        return f"they differ in {'; in '.join(self.parts)}; {text}"


def difference(
    one: object, other: object, encodings: Callable[[], tuple[Encode, Encode]]
) -> Difference | None:
    """How two tokenizers differ; None where they have the same fingerprint.

    Args:
        one, other: what two tokenizer.json hold (``content_of``).
        encodings: makes the encoding of each; called where the fingerprints differ.

    Raises:
        ConfigurationError: one of them cannot be read.
    """
    parts, others = canonical_parts(one), canonical_parts(other)
    if parts == others:
        return None
    added = [row[1] for rows in (parts, others) for row in rows["added_tokens"]]
    found = first_difference(*encodings(), added)
    return Difference(tuple(part_differences(parts, others)), found)


def loaded_otherwise(
    loaded: str, published: bytes, encodings: Callable[[], tuple[Encode, Encode]]
) -> str:
    """A warning where a tokenizer encodes otherwise than the tokenizer.json that it was
    loaded from; empty where no text of the probe shows that it does.

    Raises:
        ConfigurationError: as ``difference``.
    """
    found = difference(content_of(loaded), content_of(published), encodings)
    if found is None or found.text is None:
        return ""
    return (
        "transformers rebuilds the tokenizer from the class that tokenizer_config.json names or "
        "the model's family has, and it encodes otherwise than its tokenizer.json: "
        f"{found.text.describe()} (as loaded, and by the file); they differ in "
        f"{'; in '.join(found.parts)}. It is used as loaded everywhere. Where that is not meant, "
        "set tokenizer_class to PreTrainedTokenizerFast in tokenizer_config.json; that changes "
        "nothing for families whose own class transformers takes whatever the file names, "
        "Qwen2 and Qwen3.5 among them"
    )

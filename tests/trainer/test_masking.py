"""Which tokens are masked, with a real byte-level tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from student_trainer.losses.parts.loss import MaskSettings
from student_trainer.student.masking import token_bytes, token_mask
from student_trainer.student.model import Student


def masked_texts(student: Student, text: str, **settings: object) -> list[str]:
    """The pieces of ``text`` that are masked, in order."""
    ids = np.asarray(student.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    mask = token_mask(
        MaskSettings(**settings),  # type: ignore[arg-type]
        student.tokenizer,
        student.vocabulary_size,
    )
    flags = mask.masked(ids)
    assert flags.shape == ids.shape
    return [student.tokenizer.decode([i]) for i, flag in zip(ids, flags, strict=True) if flag]


def test_a_literal_spelled_over_several_tokens(student: Student) -> None:
    spelled = masked_texts(student, "<think>2 < 3</think> so 2<3")
    assert len(spelled) > 2
    assert "".join(spelled) == "<think></think>"


def test_every_occurrence_is_masked(student: Student) -> None:
    assert "".join(masked_texts(student, "a<think>b<think>c</think>")) == "<think><think></think>"


@pytest.mark.parametrize("text", ["a < b", "<", "x<y>z", "< think>", "<thin", "think>", "<</", ""])
def test_what_only_resembles_it_is_never_masked(student: Student, text: str) -> None:
    assert masked_texts(student, text) == []


def test_a_special_token_is_masked_whole_and_only_when_listed(student: Student) -> None:
    text = "yes<|im_end|>no<|endoftext|>"
    assert masked_texts(student, text) == []
    assert masked_texts(student, text, strings=("<|im_end|>",)) == ["<|im_end|>"]
    listed = student.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert masked_texts(student, text, strings=(), token_ids=(listed,)) == ["<|endoftext|>"]


def test_overlapping_occurrences_are_both_found(student: Student) -> None:
    assert "".join(masked_texts(student, "zabababz", strings=("abab",))) == "ababab"


def test_a_literal_outside_ascii(student: Student) -> None:
    # Each character is several byte tokens of this vocabulary.
    text = "one \u601d\u8003 two"
    ids = np.asarray(student.tokenizer(text)["input_ids"], np.int32)
    mask = token_mask(MaskSettings(strings=("\u8003",)), student.tokenizer, 320)
    pieces = token_bytes(student.tokenizer)
    chosen = b"".join(pieces[int(i)] for i in ids[mask.masked(ids)])
    assert chosen == "\u8003".encode()


def test_token_bytes_rebuild_any_text(student: Student) -> None:
    text = "The teacher: \u00e9t\u00e9, 2<3\n\ttabs \u601d\u8003 <|im_end|>"
    pieces = token_bytes(student.tokenizer)
    assert b"".join(pieces[i] for i in student.tokenizer(text)["input_ids"]) == text.encode()


def test_support_ids_are_the_masked_single_tokens(student: Student) -> None:
    settings = MaskSettings(strings=("<|im_end|>", "<think>"), token_ids=(7,))
    assert token_mask(settings, student.tokenizer, 320).support_ids.tolist() == []
    removing = settings.model_copy(update={"remove_from_support": True})
    assert token_mask(removing, student.tokenizer, 320).support_ids.tolist() == [2, 7]


def test_a_sentence_piece_like_tokenizer() -> None:
    vocabulary = {"<unk>": 0, "\u2581a": 1, "<0x3C>": 2, "b": 3, "<": 4, "t>": 5}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    mask = token_mask(MaskSettings(strings=("<t>",)), tokenizer, 6)
    assert mask.masked(np.array([1, 2, 5, 4, 3], np.int32)).tolist() == [
        False, True, True, False, False,
    ]  # fmt: skip
    assert token_bytes(tokenizer)[1] == b" a"


def test_refusals(student: Student) -> None:
    with pytest.raises(ConfigurationError, match="id 320 is outside"):
        token_mask(MaskSettings(token_ids=(320,)), student.tokenizer, 320)
    with pytest.raises(ValueError, match="match everywhere"):
        MaskSettings(strings=("",))
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(ConfigurationError, match="not known"):
        token_mask(MaskSettings(), PreTrainedTokenizerFast(tokenizer_object=words), 2)

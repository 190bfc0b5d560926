"""The enumeration that the bench and other tests compare with."""

from __future__ import annotations

from benchmarks.realign_reference import NgramTeacher, enumerate_paths
from tests.realign.real_tokenizers import vocabulary


def test_text_may_end_inside_a_character() -> None:
    """The first two bytes of a character are other tokens alone than before its last."""
    student, teacher = vocabulary("llama3"), vocabulary("gpt4o")
    text = "找到了丢失的钥匙。"
    learnt = teacher.encoder.encode((text * 4).encode()).ids.tolist()
    model = NgramTeacher(learnt, teacher)
    ids = student.encoder.encode(text.encode()).ids.tolist()
    said = "找到了".encode() + "丢".encode()[:2]
    count = 0
    while sum(len(student.token_bytes[token]) for token in ids[:count]) < len(said):
        count += 1
    alone = teacher.encoder.encode(said).ids.tolist()
    assert alone != learnt[: len(alone)]
    truth = enumerate_paths(
        model, learnt[-3:], said, ids[:count], student, teacher, open_share=0.01, most=2000
    )
    assert truth is not None
    assert truth.mass[ids[count]] > 0.9

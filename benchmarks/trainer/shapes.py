"""Models of the comparisons: the quickstart's, and one of a large vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from student_trainer.quickstart.models import pruned_dir
from student_trainer.quickstart.prepare import smollm2_dir

QUICKSTART, LARGE = "quickstart", "large_vocabulary"
VOCABULARY, HIDDEN, LAYERS = 151_936, 896, 4
QUESTIONS = Path(__file__).parents[2] / "student_trainer" / "quickstart" / "train.jsonl"


@dataclass(frozen=True)
class Shape:
    """Attributes: teacher, student: their folders. prompts: rows of a dataset of conversations."""

    teacher: Path
    student: Path
    prompts: list[dict[str, Any]]


def rollout_student() -> Path:
    """The quickstart's student; its first call downloads and converts the model."""
    return pruned_dir(smollm2_dir(print), print)


def shape(name: str, folder: Path) -> Shape:
    """The models and prompts of a comparison; what is random is written to ``folder``."""
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    if name == QUICKSTART:
        teacher = smollm2_dir(print)
        return Shape(teacher, pruned_dir(teacher, print), rows)
    made = [_large(folder / side, seed) for seed, side in enumerate(("teacher", "student"))]
    return Shape(made[0], made[1], rows)


def _large(folder: Path, seed: int) -> Path:
    """Random weights of Qwen2.5-0.5B's width and vocabulary, in 4 layers."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4_864,
        num_hidden_layers=LAYERS,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4_096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, two specials, and tokens that no text has, up to the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = ["<|endoftext|>", "<|im_end|>", *alphabet]
    rest = [f"token{n}" for n in range(VOCABULARY - len(known))]
    tokenizer = Tokenizer(
        models.BPE(vocab={text: n for n, text in enumerate([*known, *rest])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
    )

"""Random models of real shapes, with a real tokenizer: speed and memory do not depend on the
weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config


@dataclass(frozen=True)
class Shape:
    """What of a model decides its cost."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool


# Those of Qwen2.5.
SHAPES = {
    "0.5B": Shape(151_936, 896, 4_864, 24, 14, 2, True),
    "7B": Shape(152_064, 3_584, 18_944, 28, 28, 4, False),
    "tiny": Shape(151_936, 64, 128, 2, 4, 2, True),
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_model(name: str, folder: Path, tokenizer: Path, device: str) -> Path:
    """A model of this shape in bfloat16, in a folder.

    Args:
        tokenizer: a tokenizer.json with ChatML's special tokens and at most ``vocabulary`` ids.
    """
    shape = SHAPES[name]
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4_096,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=151_645,
        pad_token_id=151_643,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": TEMPLATE,
            }
        )
    )
    return folder


def parameters(name: str) -> int:
    """How many weights a model of this shape has."""
    shape = SHAPES[name]
    head_size = shape.hidden // shape.heads
    attention = 2 * shape.hidden * (shape.hidden + shape.key_value_heads * head_size)
    layer = attention + 3 * shape.hidden * shape.intermediate
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return shape.layers * layer + embeddings

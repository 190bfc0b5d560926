"""Tiny real models and tokenizers made on the spot: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

ENGLISH = (
    "The teacher reads what the student wrote and says how likely it finds each token.",
    "A short answer is not a better answer; the student learns from every token of it.",
    "user asks and the assistant answers in the system that they share.",
    "What is the capital of France? The capital of France is Paris.",
    "The weather in the morning was cold, then the sun came and the day was warm.",
)
CODE = (
    "def score(self, request): return [row for row in self.engine.rows(request) if row.finite]",
    "for index in range(len(values)): total += values[index] * weights[index]",
    "import numpy as np; print(np.arange(10).reshape(2, 5).sum(axis=1))",
    "while not queue.empty(): job = queue.get(); job.run(); queue.task_done()",
)


def train_tokenizer(texts: tuple[str, ...], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: 256 bytes, merges learnt from ``texts``, ChatML specials."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == vocabulary_size, "the texts are too short for the size"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llama_config(vocabulary_size: int = 320, **changes: Any) -> LlamaConfig:
    """Llama of 3 layers, hidden size 64; weights wide enough for peaked distributions."""
    values: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.15,
        "bos_token_id": None,
    }
    return LlamaConfig(**(values | changes))


def save_model(
    model: PreTrainedModel, directory: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Writes ``model`` as safetensors, and ``tokenizer`` beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory


def make_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    texts: tuple[str, ...] = ENGLISH,
    vocabulary_size: int = 320,
    dtype: torch.dtype = torch.float32,
    **config_changes: Any,
) -> Path:
    """A random Llama of these weights (``seed``) with a tokenizer of its own, saved."""
    tokenizer = train_tokenizer(texts, vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_llama_config(
            vocabulary_size,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config_changes,
        )
        model = LlamaForCausalLM(config).to(dtype)
    return save_model(model, directory, tokenizer)


# Sizes of a tiny language model; every architecture of transformers takes these names.
TEXT_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
VISION_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 48,
    "patch_size": 14,
}
QWEN_IMAGES: dict[str, Any] = {
    "image_token_id": 319,
    "video_token_id": 318,
    "vision_start_token_id": 317,
    "vision_end_token_id": 316,
}
# Models for text and images: the class's name without "ForConditionalGeneration" -> the
# settings of the parts, and of the whole.
WITH_IMAGES: dict[str, dict[str, Any]] = {
    "Gemma3": {
        "text_config": TEXT_SIZES | {"sliding_window": 16},
        "vision_config": VISION_SIZES,
        "image_token_index": 319,
        "boi_token_index": 318,
        "eoi_token_index": 317,
        "mm_tokens_per_image": 4,
    },
    "Mistral3": {
        "text_config": TEXT_SIZES | {"model_type": "mistral"},
        "vision_config": VISION_SIZES | {"model_type": "pixtral", "head_dim": 8},
        "image_token_index": 319,
    },
    "Qwen3_5": {
        "text_config": TEXT_SIZES
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        },
        "vision_config": QWEN_VISION,
        **QWEN_IMAGES,
    },
    "Qwen3VL": {
        "text_config": TEXT_SIZES,
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]},
        **QWEN_IMAGES,
    },
    "Llava": {
        "text_config": TEXT_SIZES | {"model_type": "llama"},
        "vision_config": VISION_SIZES | {"model_type": "siglip_vision_model"},
        "image_token_index": 319,
    },
}


def make_model_with_images(
    family: str,
    directory: Path,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    **text: Any,
) -> Path:
    """A random ...ForConditionalGeneration of ``WITH_IMAGES``, saved.

    ``text`` changes sizes of its language model.
    """
    import transformers

    sizes = WITH_IMAGES[family]
    sizes = sizes | {"text_config": sizes["text_config"] | text}
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    return save_model(model, directory, tokenizer)

"""A small Llama with its tokenizer, as a folder that everything of the project loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Sizes:
    """Of a network; its embeddings are tied to its head.

    Attributes:
        hidden, inner: widths of the hidden states and of the gated layers.
        positions: tokens of the longest sequence.
        deviation: of all weights at the start. About 1 / sqrt(hidden): the .02 of large networks
            took nearly twice the tokens to learn as much.
    """

    layers: int = 4
    hidden: int = 128
    inner: int = 256
    heads: int = 4
    positions: int = 1024
    deviation: float = 0.08


def make_network(sizes: Sizes, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A float32 network with weights drawn from the seed, for this tokenizer's ids."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.positions,
        initializer_range=sizes.deviation,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
    network.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return network


def save(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes configuration, safetensors and tokenizer."""
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parameters(network: Any) -> int:
    """Tied weights count once."""
    return sum(weight.numel() for weight in network.parameters())

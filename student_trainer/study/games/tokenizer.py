"""The tokenizer of the games' models: byte-level BPE in which every word of the games is one token
where a space is before it. Any other text is written in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
SPACE = "\u0120"  # a space, in the alphabet of byte-level BPE
# A space belongs to the word after it.
_PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
_WORD = re.compile(r"[A-Za-z]+")


def words_of(texts: Iterable[str]) -> list[str]:
    """The words in texts, sorted."""
    return sorted({word for text in texts for word in _WORD.findall(text)})


def make_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for texts of these words. It has no chat template and no token that begins a
    text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    every = sorted(set(words))
    # Merges of words after a space come first, so that none of the others breaks them up.
    spaced = [pair for word in every for pair in _chain(SPACE + word)]
    marks = [(SPACE, mark) for mark in "()"]
    merges = list(dict.fromkeys([*spaced, *marks]))
    bare = [pair for word in every for pair in _chain(word)]
    merges = list(dict.fromkeys([*merges, *bare]))
    tokens = list(dict.fromkeys([END, PAD, *alphabet, *(a + b for a, b in merges)]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def _chain(text: str) -> Iterator[tuple[str, str]]:
    for end in range(1, len(text)):
        yield text[:end], text[end]

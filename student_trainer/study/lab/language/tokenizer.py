"""The tokenizer of the laboratory: byte-level BPE whose merges are written down, not learnt.

Every word and every number of a language is one token. Any other text is written in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from student_trainer.study.lab.language.words import ANSWER, ITEMS, SLOT_OF

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = (*ITEMS, ANSWER, "=")
END, PAD = "<|end|>", "<|pad|>"
SPACE = "\u0120"  # a space, in the alphabet of byte-level BPE
# A space belongs to the word or the number after it.
_PATTERN = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def merges(numbers: Iterable[int]) -> list[tuple[str, str]]:
    """The merges in their order: numbers and ``WORDS`` letter by letter, then the invented words
    of the styles by their syllables."""
    chains = [SPACE + word for word in WORDS] + [SPACE + str(number) for number in numbers]
    found = [pair for text in sorted(set(chains)) for pair in _chain(text)]
    invented = sorted(SLOT_OF)
    found += [(SPACE, word[0]) for word in invented]
    found += [(SPACE + word[0], word[1]) for word in invented]
    found += [(word[2], word[3]) for word in invented]
    found += [(SPACE + word[:2], word[2:]) for word in invented]
    return list(dict.fromkeys(found))


def _chain(text: str) -> Iterator[tuple[str, str]]:
    for end in range(1, len(text)):
        yield text[:end], text[end]


def make_tokenizer(numbers: Iterable[int]) -> PreTrainedTokenizerFast:
    """The tokenizer of a language whose texts hold these numbers, of at most three digits. It has
    no chat template and no token that begins a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ordered = merges(numbers)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([END, PAD, *alphabet, *(a + b for a, b in ordered)]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=ordered))
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


class WordIds:
    """The ids of texts word by word, which are those of the whole text: no token holds parts of
    two words."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.end = int(tokenizer.eos_token_id)
        self.padding = int(tokenizer.pad_token_id)

    def of_word(self, word: str) -> list[int]:
        """The ids of a word, with the space before it if there is one."""
        if word not in self._known:
            self._known[word] = self._tokenizer.encode(word, add_special_tokens=False)
        return self._known[word]

    def of_text(self, text: str) -> list[int]:
        """The ids of words with one space between them."""
        return [token for word in re.findall(r" ?[^ ]+", text) for token in self.of_word(word)]

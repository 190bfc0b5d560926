"""A student whose tokenizer is not its teacher's: SmolLM2's layers with embeddings for a
small byte-level BPE, which is trained on the spot.

The embedding of a new token is the mean of the embeddings of SmolLM2's tokens for the same
text. What the student then has to learn is to write in other tokens than those its layers
were trained on.
"""

from __future__ import annotations

import pydoc
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.quickstart.cache import Note, ensure

VOCABULARY = 16384
# Part of the folder's name; it increases whenever the written files change.
VERSION = 2
START, STOP, PAD = "[start]", "[stop]", "[pad]"
# The tokens of the teacher's template in the same places.
COUNTERPARTS = {START: "<|im_start|>", STOP: "<|im_end|>", PAD: "<|endoftext|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[start]' + message['role'] + '\n' + message['content'] + '[stop]\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[start]assistant\n' }}{% endif %}"
)
# Modules of the standard library with documentation in prose.
MODULES = (
    "argparse", "asyncio", "collections", "contextlib", "copy", "csv", "datetime", "decimal",
    "doctest", "email", "enum", "fractions", "functools", "heapq", "inspect", "ipaddress",
    "itertools", "json", "logging", "optparse", "os", "pathlib", "pdb", "pickle", "random",
    "shutil", "statistics", "string", "subprocess", "textwrap", "threading", "turtle",
    "typing", "unittest", "uuid", "zipfile",
)  # fmt: skip


def foreign_dir(teacher: Path, prompts: Path, note: Note) -> Path:
    """The student's folder, in the cache beside the teacher's.

    Args:
        prompts: a JSON Lines file on which the tokenizer is trained too.
    """

    def make(folder: Path) -> Mapping[str, object]:
        note(f"training a tokenizer of {VOCABULARY} tokens, and embeddings for it as means")
        make_foreign(teacher, folder, texts(prompts), VOCABULARY)
        return {"source": teacher.name, "vocabulary": VOCABULARY, "version": VERSION}

    # The corpus is this Python's documentation.
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"{teacher.name}-foreign-{VOCABULARY}-{VERSION}-{python}"
    return ensure(teacher.parent / name, make)


def texts(prompts: Path) -> Iterator[str]:
    """The documentation of the standard library, and the file of prompts."""
    from pydoc_data import topics

    yield from topics.topics.values()
    for name in MODULES:
        yield pydoc.plain(pydoc.render_doc(name))
    yield prompts.read_text(encoding="utf-8")


def make_foreign(teacher: Path, folder: Path, corpus: Iterator[str], vocabulary: int) -> None:
    """Writes the teacher's network with another tokenizer to ``folder``.

    Raises:
        ConfigurationError: the teacher's tokenizer lacks the counterparts of the new
            special tokens.
        LsmError: the corpus is too small for the vocabulary.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(teacher)
    tokenizer = train_tokenizer(corpus, vocabulary)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    pieces = [pieces_of(tokenizer, token, theirs) for token in range(vocabulary)]
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    means = [torch.stack([matrix[ids].mean(0) for ids in pieces]).detach() for matrix in matrices]
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(means[0])
        model.get_output_embeddings().weight.copy_(means[1])
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
           "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    for name, value in ids.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(corpus: Iterator[str], vocabulary: int) -> Any:
    """A byte-level BPE that splits digits one by one, with special tokens of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    if made.get_vocab_size() != vocabulary:
        raise LsmError(
            f"the texts give {made.get_vocab_size()} tokens, not {vocabulary}", where="quickstart"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=STOP,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
    )


def pieces_of(tokenizer: Any, token: int, theirs: Any) -> list[int]:
    """The ids of the other tokenizer from whose embeddings the token's is made: those of its
    text, or of its bytes if it is only a part of a character."""
    written = tokenizer.convert_ids_to_tokens(token)
    if written in COUNTERPARTS:
        if COUNTERPARTS[written] not in theirs.get_vocab():
            raise ConfigurationError(
                f"the teacher's tokenizer has no {COUNTERPARTS[written]}", where="quickstart"
            )
        return [theirs.convert_tokens_to_ids(COUNTERPARTS[written])]
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    ids: list[int] = []
    if "\ufffd" not in text:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
    # Both are byte-level: a byte is the same letter in either vocabulary. A byte without a
    # token of the teacher becomes its unknown token.
    return ids or list(theirs.convert_tokens_to_ids(list(written)))

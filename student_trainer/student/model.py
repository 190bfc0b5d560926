"""The student: a causal language model, its tokenizer and its head.

The losses work on final hidden states and on the head's weight. The head therefore has to
be exactly what the model itself applies; ``load_student`` checks that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.models.special_ids import check_special_ids
from teacher_proto.models.text_model import describe_unused, max_length
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Int32
from torch import Tensor, nn

from student_trainer.distributed.shards import Shards
from student_trainer.losses.parts.base import Head
from student_trainer.settings.student import StudentSettings
from student_trainer.student.head import check_mergeable, head_logits, read_head
from student_trainer.student.loading import (
    MODEL,
    load_network,
    save_network,
    save_processor_files,
    student_folder,
)
from student_trainer.student.lora import (
    add_adapters,
    base_weights_digest,
    check_base,
    save_base,
)
from student_trainer.student.packing.attention import reading, segmented
from student_trainer.student.packing.layout import Layout, pack, pad
from student_trainer.student.packing.probe import why_not_packable
from student_trainer.student.terminators import terminators
from student_trainer.student.tokenizer import load_tokenizer
from student_trainer.student.vocabulary import drawn_below, padding_id, undrawn_ids

log = logging.getLogger(__name__)

_BASE_FIX = "restore the weights of {}, or start another run in another run.output_dir"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEAD_PROBE_TOKENS = 16


@dataclass(frozen=True)
class Student:
    """A loaded student.

    Attributes:
        module: the model that is trained, wrapped by peft when it has adapters.
        decoder: its language model without the head, which gives the hidden states.
        tokenizer: the transformers tokenizer that is saved with it.
        tokenizer_hash: the tokenizer's fingerprint, as the teacher service computes it.
        vocabulary_size: width V of the logits.
        terminators: ids that end a response, ascending.
        padding_id: id written where a batch has no token; never scored.
        max_length: longest sequence the model takes, tokens.
        folder: where the model was loaded from.
        dropout: whether the model's own dropout is on in updates.
        base_digest: of the weights under adapters (``lora.base_weights_digest``); empty
            for a student without adapters.
        template_arguments: ``data.template_arguments``, which can change how a turn ends.
        packs: whether it reads several sequences side by side, without padding.
        undrawn: int64 [M], ids that are never drawn because no token has them; None where there
            are none.
        shards: of its parameters, where several ranks train it (student/sharding.py).
    """

    module: nn.Module
    decoder: nn.Module
    tokenizer: Any
    tokenizer_hash: str
    device: torch.device
    vocabulary_size: int
    terminators: tuple[int, ...]
    padding_id: int
    max_length: int
    folder: Path
    dropout: bool = False
    base_digest: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    packs: bool = False
    undrawn: Tensor | None = None
    shards: Shards | None = None

    @property
    def head(self) -> Head:
        """The output projection, with the ids that are never drawn. Its tensors are the model's
        own parameters, as they are now: whoever uses them later reads the head again."""
        return replace(read_head(self.causal_model), undrawn=self.undrawn)

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        if self.shards is not None and self.shards.narrows:
            return self.shards.dtype
        return self.head.weight.dtype

    @property
    def causal_model(self) -> Any:
        """The transformers model with its head. Adapters act inside it."""
        return _causal_model(self.module)

    @property
    def drawn_below(self) -> int:
        """One above the highest id that the student can draw; at most ``vocabulary_size``."""
        return drawn_below(self.undrawn, self.vocabulary_size)

    @property
    def has_adapters(self) -> bool:
        return self.causal_model is not self.module


def load_student(
    settings: StudentSettings,
    weights: Path | None = None,
    stop_ids: Sequence[int] = (),
    template_arguments: Mapping[str, Any] | None = None,
) -> Student:
    """Loads the student for training; ``module`` is in evaluation mode.

    Args:
        settings: what to load and how.
        weights: a saved state to continue from (``save_weights``). It replaces the model's
            own weights; when the student has adapters, it replaces these.
        stop_ids: ``rollout.stop_ids``.
        template_arguments: ``data.template_arguments``.

    Raises:
        ConfigurationError: the student cannot be loaded, has no terminator that it can
            draw, or its head is not a plain projection of its last hidden states.
    """
    device = resolve_device(settings.device)
    folder = student_folder(settings.model)
    base_digest = ""
    if settings.lora:
        base_digest = base_weights_digest(folder)
        if weights is not None:
            check_base(weights, base_digest, where=MODEL, fix=_BASE_FIX.format(settings.model))
    source = folder if weights is None or settings.lora else weights
    tokenizer = load_tokenizer(settings)
    if settings.needs_flash_attention and device.type != "cuda":
        raise ConfigurationError(
            f"{settings.attention} computes on a GPU, and the student is on {device}",
            where="student.attention",
            fix="leave it out",
        )
    model, text = load_network(
        source, DTYPES[settings.dtype], settings.model, attention=settings.attention
    )
    if text.unused:
        log.info("the student: %s", describe_unused(text.unused))
    model.to(device)
    module = add_adapters(model, text, settings.lora, weights) if settings.lora else model
    if settings.gradient_checkpointing:
        # transformers renamed the method in 5.2x; both take the same first argument.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    module.eval()
    if settings.lora and settings.lora.merge_final:
        check_mergeable(model)
    student = student_of(
        module,
        text.decoder,
        tokenizer,
        folder,
        longest=settings.max_length,
        stop_ids=stop_ids,
        template_arguments=template_arguments,
    )
    student = replace(student, device=device, dropout=settings.dropout, base_digest=base_digest)
    _probe_update(student)
    return replace(student, packs=settings.packing == "auto" and _probe_packing(student))


def student_of(
    module: nn.Module,
    decoder: nn.Module,
    tokenizer: Any,
    folder: Path,
    *,
    longest: int | None = None,
    stop_ids: Sequence[int] = (),
    template_arguments: Mapping[str, Any] | None = None,
) -> Student:
    """A loaded model as a student.

    Args:
        module: in evaluation mode.
        decoder: its language model without the head.
        longest: the longest sequence, for a model that states none.
        stop_ids, template_arguments: as for ``load_student``.

    Raises:
        ConfigurationError: it has no terminator that it can draw, or its head is not a plain
            projection of its last hidden states.
    """
    model = _causal_model(module)
    head = read_head(model)
    width = int(head.weight.shape[0])
    rows = min(width, int(model.get_input_embeddings().weight.shape[0]))
    arguments = template_arguments or {}
    ends = terminators(model, tokenizer, rows, stop_ids, arguments)
    padding = padding_id(tokenizer, ends[0], rows)
    check_special_ids(tokenizer, rows, MODEL)
    student = Student(
        module=module,
        decoder=decoder,
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(tokenizer.backend_tokenizer.to_str()),
        device=head.weight.device,
        vocabulary_size=width,
        terminators=ends,
        padding_id=padding,
        max_length=max_length(model.config, longest, "student.max_length"),
        folder=folder,
        template_arguments=arguments,
    )
    _probe_head(student)
    undrawn = undrawn_ids(tokenizer, width, rows)
    return student if undrawn is None else replace(student, undrawn=undrawn.to(student.device))


def resolve_device(name: str) -> torch.device:
    """The torch device that a setting names. ``auto`` is CUDA when there is a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device {name!r} cannot be used: {error}",
            where="student.device",
            fix="use cpu or auto",
        ) from error
    return device


def hidden_states(student: Student, sequences: Sequence[Int32]) -> Tensor:
    """Final hidden states of a right-padded batch, after the last norm.

    Returns:
        [B, Lmax, H] in the model's dtype, with gradients unless they are turned off.
        Positions past a sequence's end hold meaningless values.
    """
    layout = pad(sequences, student.padding_id)
    return read_layout(student, layout).view(*layout.ids.shape, -1)


def lay_out(student: Student, sequences: Sequence[Int32], prompts: Sequence[int]) -> Layout:
    """How the student reads sequences at once: side by side where it can, otherwise padded.

    Args:
        prompts: for each sequence, how many of its first tokens, at least 1, others may share.
    """
    if student.packs:
        return pack(sequences, prompts)
    return pad(sequences, student.padding_id)


def read_layout(student: Student, layout: Layout) -> Tensor:
    """Final hidden states of a layout, after the last norm.

    Returns:
        [B * L, H] in the model's dtype, with gradients unless they are turned off. Those of
        padding hold meaningless values.

    A backward pass through layers that recompute their activations belongs inside of
    ``packing_for``.
    """
    ids = torch.from_numpy(layout.ids).to(student.device)
    mask = torch.from_numpy(layout.mask).to(student.device)
    if not layout.packed:
        return _last_hidden(student, ids, mask).flatten(0, 1)
    positions = torch.from_numpy(layout.positions).to(student.device)
    with segmented(student.decoder), reading(layout.segments):
        return _last_hidden(student, ids, mask, position_ids=positions).flatten(0, 1)


@contextmanager
def packing_for(student: Student) -> Iterator[None]:
    """Surrounds forward and backward passes over what the student reads packed."""
    if not student.packs:
        yield
        return
    with segmented(student.decoder):
        yield


def set_training(student: Student, *, adapters: bool = True) -> None:
    """Puts the model into the state of an update; ``module.eval()`` ends it.

    Its own dropout is on only with ``student.dropout``; that of the adapters always is.
    Layers that recompute their activations do so only in training mode.

    Args:
        adapters: False leaves the dropout of the adapters off.
    """
    if student.dropout:
        student.module.train()
        return
    student.module.eval()
    for module in student.module.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
        if adapters and isinstance(own := getattr(module, "lora_dropout", None), nn.Module):
            own.train()


def not_finite(where: str) -> LsmError:
    """The error for logits of the student that are not finite."""
    return LsmError(
        "the student's logits are not finite",
        where=where,
        fix="go back to an earlier checkpoint and lower optimizer.lr",
        reason="NON_FINITE",
    )


def save_weights(student: Student, directory: Path) -> None:
    """Saves what is trained, the model or only its adapters, with the tokenizer.

    Every rank calls it, and rank 0 alone writes: the others do not wait for that.
    """
    if student.shards is None:
        _write(student, directory, None)
        return
    with student.shards.gathered():
        if student.shards.world.writes:
            _write(student, directory, student.shards.tensors(student.module))


def _write(student: Student, directory: Path, tensors: Mapping[str, Tensor] | None) -> None:
    """``tensors``: the module's, by name; None where its own ``state_dict`` has them."""
    module: Any = student.module
    if student.has_adapters:
        module.save_pretrained(directory, state_dict=tensors, save_embedding_layers=False)
        save_base(directory, module.active_peft_config.base_model_name_or_path, student.base_digest)
    else:
        save_network(module, directory, tensors)
    _save_readers(student, directory)


def save_final(student: Student, directory: Path, *, merge: bool) -> Student:
    """Saves the trained model for use; ``merge`` folds adapters into the weights.

    Returns:
        The student as it was saved. Where adapters were folded in, ``student`` cannot be
        used any more.
    """
    if student.has_adapters and merge:
        adapted: Any = student.module
        merged = adapted.merge_and_unload()
        student = replace(student, module=merged)
    save_weights(student, directory)
    return student


def _save_readers(student: Student, directory: Path) -> None:
    student.tokenizer.save_pretrained(directory)
    save_processor_files(student.folder, directory)


def _causal_model(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _last_hidden(student: Student, ids: Tensor, mask: Tensor, **more: Tensor) -> Tensor:
    output = student.decoder(
        input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True, **more
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


@torch.no_grad()
def _probe_head(student: Student) -> None:
    """Checks that the head applied to the hidden states gives the model's own logits."""
    step = max(student.vocabulary_size // HEAD_PROBE_TOKENS, 1)
    ids = torch.arange(HEAD_PROBE_TOKENS, device=student.device) * step % student.vocabulary_size
    ids = ids.unsqueeze(0)
    mask = torch.ones_like(ids)
    module: Any = student.module
    own = module(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
    ours = head_logits(student.head, _last_hidden(student, ids, mask)[0])
    bound = 1e-4 if student.dtype == torch.float32 else 3e-2
    difference = float((own - ours).abs().max())
    if not difference <= bound * max(float(own.abs().max()), 1.0):
        raise ConfigurationError(
            "its logits are not the head applied to its last hidden states "
            f"(largest difference {difference:.3g})",
            where="student.model",
            fix="use a model whose head is a linear layer, with a scale or a softcap at most",
        )


@torch.no_grad()
def _probe_update(student: Student) -> None:
    """Checks that an update reads tokens as a rollout does, unless dropout is asked for."""
    if student.dropout:
        return
    ids = torch.arange(HEAD_PROBE_TOKENS, device=student.device) % student.vocabulary_size
    ids = ids.unsqueeze(0)
    mask = torch.ones_like(ids)
    before = _last_hidden(student, ids, mask).float()
    set_training(student, adapters=False)
    after = _last_hidden(student, ids, mask).float()
    student.module.eval()
    bound = 1e-4 if student.dtype == torch.float32 else 3e-2
    if not float((after - before).norm()) <= bound * float(before.norm()):
        raise ConfigurationError(
            "it reads the same tokens otherwise in training mode, with its dropout off",
            where=MODEL,
            fix="set student.gradient_checkpointing = false, or student.dropout = true to train "
            "with what the model does in training",
        )


@torch.no_grad()
def _probe_packing(student: Student) -> bool:
    """Whether the student reads packed sequences as padded ones; says why where it does not."""
    bound = 1e-4 if student.dtype == torch.float32 else 3e-2

    ids = min(
        student.vocabulary_size, int(student.causal_model.get_input_embeddings().weight.shape[0])
    )
    why = why_not_packable(partial(read_layout, student), ids, student.padding_id, bound)
    if why is not None:
        log.info("the student: sequences are padded, not packed, because %s", why)
    return why is None

"""Which prompts a run reads: a digest of their source, and what differs between two.

A digest is text, ``source:name=value,...``:

    rows      sha256 of the rows: messages, template arguments, texts
    template  sha256 of the chat templates that render them
    as-read   sha256 over tokens and rows, with the date that a template prints held fixed
    clock     whether the templates print the date
    begun     how many prompts were given the token that begins a text
    teachers  sha256 of which teacher scores each row and of what only it reads, where the data
              says anything of it
    answers   sha256 of the answers, where the run learns from those of the data
    episodes  sha256 of the identities of the prompts whose responses are episodes, where there
              are any: of the rows that make their environments. Earlier digests lack it

Checkpoints of earlier versions have ``as-read:`` and a sha256 alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from teacher_proto.types import Int32, Prompt

# Begins a digest, so that one taken by another rule is recognised.
RULE = "source:"
EARLIER_RULE = "as-read:"


def prompt_identity(reference_ids: Int32) -> str:
    """16 hexadecimal digits that depend only on the tokens the student reads, int32 [P], with
    the date that a template prints held fixed: the same on every day of a run.

    Rows that differ in a dropped answer, in their columns or in their file have the same
    identity.
    """
    return hashlib.sha256(reference_ids.astype("<i4").tobytes()).hexdigest()[:16]


def episode_identity(prompt_id: str, row: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a prompt whose responses are episodes: another row is another
    environment, whatever the student reads of it.

    Args:
        prompt_id: ``prompt_identity`` of what the student reads.
        row: JSON values.
    """
    told = json.dumps([prompt_id, row], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def prompts_digest(
    prompts: Sequence[tuple[Prompt, Int32]],
    templates: str,
    *,
    shares: Sequence[tuple[int, float]] = (),
    clock: bool,
    begun: int,
    of_teachers: Sequence[tuple[str, Prompt | None]] = (),
    answers: Sequence[str] = (),
    episodes: Sequence[str] = (),
) -> str:
    """The digest of prompts in their order.

    Args:
        prompts: each as it is in the dataset, and int32 [P], its tokens with the date that a
            template prints held fixed.
        templates: everything of the chat templates that can change a rendering.
        shares: prompts of each file, and its share in the prompts of a run; empty where no
            shares are set.
        clock: whether they print the date.
        begun: how many prompts were given the token that begins a text.
        of_teachers: of each prompt the name of its teacher, and what only that reads; empty
            where a run has one teacher and both read the same.
        answers: of each prompt; empty where none are learnt from.
        episodes: ``episode_identity`` of each prompt that has one.
    """
    rows, read = hashlib.sha256(), hashlib.sha256()
    if shares:
        rows.update(json.dumps(shares).encode())
        read.update(json.dumps(shares).encode())
    for prompt, ids in prompts:
        source = _source(prompt)
        rows.update(f"{len(source)}\n{source}".encode())
        read.update(f"{len(ids)} {len(source)}\n".encode())
        read.update(ids.astype("<i4").tobytes())
        read.update(source.encode())
    parts = {
        "rows": rows.hexdigest(),
        "template": hashlib.sha256(templates.encode()).hexdigest(),
        "as-read": read.hexdigest(),
        "clock": "yes" if clock else "no",
        "begun": str(begun),
    }
    if of_teachers:
        told = [[name, None if one is None else _source(one)] for name, one in of_teachers]
        parts["teachers"] = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    if answers:
        parts["answers"] = hashlib.sha256(json.dumps(list(answers)).encode()).hexdigest()
    if episodes:
        parts["episodes"] = hashlib.sha256(json.dumps(list(episodes)).encode()).hexdigest()
    return RULE + ",".join(f"{name}={value}" for name, value in parts.items())


def same_prompts(before: str, now: str) -> bool:
    """Whether two digests are of the same prompts, read in the same way."""
    return difference(before, now) is None


def difference(before: str, now: str) -> tuple[str, str] | None:
    """What differs between the prompts of a checkpoint and those of a run, and what to do.

    Args:
        before: the checkpoint's digest, by this rule or an earlier one.
        now: the run's, by this rule.
    """
    if before == now:
        return None
    new = _parts(now)
    if before.startswith(EARLIER_RULE):
        return _since_earlier(before.removeprefix(EARLIER_RULE), new)
    if not before.startswith(RULE):
        return (
            "the checkpoint identifies prompts by an earlier rule, which counted answers that "
            "are left out (data.final_assistant): whether its prompts are these is not known",
            "start another run in another run.output_dir",
        )
    old = _parts(before)
    if "episodes" not in old:
        new.pop("episodes", None)
        if old == new:
            return None
    changed = [name for name in _PARTS if old.get(name) != new.get(name)]
    return _DIFFERENCES[changed[0]] if changed else _ROWS


_PARTS = ("rows", "template", "begun", "as-read", "clock", "teachers", "answers", "episodes")
_ROWS = "the train prompts differ from the checkpoint's", "restore the file"
_TEMPLATE = (
    "the student's chat template is not the checkpoint's, and the prompts are",
    "restore the template (student.chat_template)",
)
_TOKENS = (
    "the student's tokenizer reads the train prompts as other tokens than the checkpoint's, and "
    "they and the chat template are the same",
    "restore the tokenizer, and the version of transformers that read it",
)
_BEGUN = (
    "the checkpoint's prompts were read without the token that begins a text, or with it, and "
    "these are not",
    'set data.add_bos = "never" if the run was started by an earlier version, which added none, '
    "else to what it was",
)
_TEACHERS = (
    "the train prompts are the checkpoint's, and which teacher scores them, or what only the "
    "teacher reads of them, is not",
    "restore the file (data.columns.teacher, data.columns.teacher_prompt)",
)
_ANSWERS = (
    "the train prompts are the checkpoint's, and their answers are not",
    "restore the file (data.columns.response)",
)
_EPISODES = (
    "the student reads the checkpoint's train prompts, and the rows that make their environments "
    "are not the checkpoint's",
    "restore the settings of the tasks, their files, and the versions of their packages",
)
_DIFFERENCES = {
    "rows": _ROWS, "template": _TEMPLATE, "begun": _BEGUN, "as-read": _TOKENS, "clock": _TEMPLATE,
    "teachers": _TEACHERS,
    "answers": _ANSWERS, "episodes": _EPISODES,
}  # fmt: skip


def _since_earlier(read: str, new: Mapping[str, str]) -> tuple[str, str] | None:
    if read == new.get("as-read"):
        return _TEACHERS if "teachers" in new else None  # there was one, who read the same
    if new.get("clock") == "yes":
        return (
            "the student's chat template prints the date, and the checkpoint, of an earlier "
            "version, identifies its prompts by the date of its day: whether they are these is "
            "not known",
            "start another run in another run.output_dir",
        )
    if new.get("begun", "0") != "0":
        return _BEGUN
    return _ROWS


def _parts(digest: str) -> dict[str, str]:
    named = (part.partition("=") for part in digest.removeprefix(RULE).split(","))
    return {name: value for name, _, value in named}


def _source(prompt: Prompt) -> str:
    """The source as JSON, as it has been digested since ``as-read:``. The order of the keys
    counts: a template may print it."""
    values: dict[str, Any] = asdict(prompt)
    for later in ("now", "special_tokens"):  # the run's, not the row's
        values.pop(later, None)
    return json.dumps(values, default=str)

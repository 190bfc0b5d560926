"""The process of environments: many episodes, which take their turns one after the other.

``python -m student_trainer.environments.inside DESCRIPTOR PARENT`` is for the trainer alone to
call, as verification/inside.py. Episodes have numbers.

    {"begin": 3, "task": NAME, "row": ...}    ->  {}
    {"act": 3, "turn": {"text": ..., ...}}    ->  {"messages": [...], "done": ..., "cut": ...}
    {"judge": 3}                              ->  {"score": ..., "reason": ..., "values": ...}
    {"end": 3}                                ->  {}
    what raises an error                      ->  {"raised": ...}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from student_trainer.tasks import Task
from student_trainer.tasks.environment import (
    LONGEST_CONTENT,
    NAMES,
    ActingTask,
    Environment,
    Observation,
    Turn,
)
from student_trainer.verification.inside import Handler, described, serve

# Messages of one observation, and bytes of one without its contents.
MAX_MESSAGES, MESSAGE_BYTES = 32, 1 << 10
# Files that all episodes of a process may have open, where the system grants as many.
DESCRIPTORS = 1 << 16
# Bytes of a character in JSON.
CHARACTER_BYTES = 6
# Bytes of the longest answer.
LONGEST = MAX_MESSAGES * (MESSAGE_BYTES + CHARACTER_BYTES * LONGEST_CONTENT)


def acting(tasks: Mapping[str, Task]) -> Handler:
    """Answers with what the environments of tasks say."""
    episodes: dict[int, tuple[ActingTask, Environment]] = {}

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        if "begin" in message:
            task = tasks[message["task"]]
            assert isinstance(task, ActingTask), "only tasks that act are sent here"
            made = task.environment(message["row"])
            if not isinstance(made, Environment):
                raise TypeError(f"environment returned a {type(made).__name__}, no Environment")
            episodes[message["begin"]] = task, made
            return {}
        if "end" in message:
            found = episodes.pop(message["end"], None)
            if found is not None:
                found[1].close()
            return {}
        if "judge" in message:
            return described(episodes[message["judge"]][1].verdict())
        task, environment = episodes[message["act"]]
        return observed(environment.act(Turn(**message["turn"])), task.observation_characters)

    return handle


def observed(observation: Any, characters: int) -> dict[str, Any]:
    """An observation as JSON values, with contents of at most ``characters`` and what says that
    they are cut.

    Raises:
        TypeError: it is no observation.
        ValueError: it has too many messages.
    """
    if not isinstance(observation, Observation):
        raise TypeError(f"act returned a {type(observation).__name__}, no Observation")
    if len(observation.messages) > MAX_MESSAGES:
        raise ValueError(
            f"an observation has {len(observation.messages)} messages, and may have {MAX_MESSAGES}"
        )
    messages, cut = [], 0
    for message in observation.messages:
        content = message["content"]
        if len(content) > characters:
            content, cut = (
                f"{content[:characters]}\n... (cut after {characters} characters)",
                cut + 1,
            )
        kept = {"role": message["role"], "content": _unicode(content)}
        kept |= {name: _unicode(message[name]) for name in NAMES if message.get(name)}
        messages.append(kept)
    return {"messages": messages, "done": bool(observation.done), "cut": cut}


def _unicode(text: str) -> str:
    """The text with U+FFFD in the place of each half of a surrogate pair without the other, which
    no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


if __name__ == "__main__":
    sys.exit(serve(acting, LONGEST, DESCRIPTORS))

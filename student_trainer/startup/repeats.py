"""The step that asks every teacher the same twice: a run learns from scores that are the same
whenever they are asked for, whichever replica of the service answers."""

from __future__ import annotations

import numpy as np
from teacher_proto.errors import ContractMismatchError
from teacher_proto.rows import required
from teacher_proto.types import ContinuationScores, Status

from student_trainer.startup.start import Start
from student_trainer.teacher.replicas import Answers, ask_again

REPEATED_TOKENS = 16


def repeats(start: Start) -> str:
    """Has the same tokens scored twice by each teacher, and once more over a connection of its
    own to each address of the service.

    Raises:
        ContractMismatchError: two answers of a teacher that says to be deterministic differ, or
            an answer is of another teacher.
        LsmError: as ``TeacherClient.score``.
    """
    return "; ".join(start.about(name, _of_teacher(start, name)) for name in start.teachers)


def _of_teacher(start: Start, name: str) -> str:
    link, config = start.teachers[name], start.config
    prompt = start.prompts.first(config.run.seed, teacher=name)
    response = np.resize(prompt.token_ids, REPEATED_TOKENS).astype(np.int32)
    top_k = config.rows_asked(name, realigned=link.realigned).top_k
    answers = ask_again(link, config.run.name, prompt, response, top_k, config.loss.temperature)
    for address in answers.silent:
        start.warn(
            start.about(
                name,
                f"{address}, an address of the service, does not answer: whether it "
                "gives the same scores is not known",
            )
        )
    first = answers.scores[0]
    if first.status is not Status.OK or first.rows.sampled is None:
        return f"the teacher has no rows for {REPEATED_TOKENS} tokens of the prompt: {first.detail}"
    apart = max(difference(first, later) for later in answers.scores[1:])
    if any(not same(first, later) for later in answers.scores[1:]):
        _judge(start, name, apart)
    known = int(first.rows.sampled.valid.sum())
    return f"{known} tokens scored {_times(answers)} lie {apart:.2g} nats apart"


def _judge(start: Start, name: str, apart: float) -> None:
    """Warns of answers that differ, which is an error where the service says that they do not."""
    link = start.teachers[name]
    what = f"the same tokens scored again differ by up to {apart:.2g} nats"
    if link.info.deterministic:
        raise ContractMismatchError(
            f"{what}, and the service says that it is deterministic",
            where=f"{link.key}.name",
            fix="run `teacher-server doctor` beside the teacher; where replicas answer, serve all "
            "of them with one build on one kind of machine",
            reason="SCORES_DISAGREE",
        )
    start.warn(
        start.about(
            name,
            f"{what}: the run does not repeat exactly, and neither does one that resumes (serve "
            "the teacher with --deterministic where they have to)",
        )
    )


def same(first: ContinuationScores, later: ContinuationScores) -> bool:
    """Whether two answers are equal to the byte."""
    before, after = first.rows.arrays(), later.rows.arrays()
    return before.keys() == after.keys() and all(
        before[name].tobytes() == after[name].tobytes() for name in before
    )


def difference(first: ContinuationScores, later: ContinuationScores) -> float:
    """The largest difference of a log-probability that both answers have, in nats; infinite
    where one has no rows.

    Args:
        first: with rows.
    """
    if later.rows.sampled is None:
        return float("inf")
    before, after = required(first.rows.sampled, "sampled token"), later.rows.sampled
    known = before.valid & after.valid
    found = [abs(before.values - after.values)[known]]
    if first.rows.support is not None and later.rows.support is not None:
        one, other = first.rows.support, later.rows.support
        both = one.valid & other.valid & (one.ids == other.ids)
        found.append(abs(one.log_probs - other.log_probs)[both])
    return float(np.concatenate(found).max(initial=0.0))


def _times(answers: Answers) -> str:
    count = len(answers.scores)
    many = "twice" if count == 2 else f"{count} times"
    return f"{many} at {answers.addresses} addresses" if answers.addresses > 1 else many

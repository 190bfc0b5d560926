"""What ``doctor`` checks besides the steps of a start, because a run does not need it or
because it takes longer."""

from __future__ import annotations

import time

import numpy as np
from teacher_proto.errors import ConfigurationError, ContractMismatchError
from teacher_proto.program.checks import check_folder
from teacher_proto.types import CLASSES_WITH_REASON

from student_trainer.commands import estimate
from student_trainer.first_example import first_response, realigned_rows
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start, Step
from student_trainer.student.model import Student
from student_trainer.teacher.connection import service_date
from student_trainer.update.realigned import describe_realigned, reasons_of

# Seconds; beyond this, tokens and certificates may be valid on one side only.
CLOCK_TOLERANCE = 30.0
# By how much repeated scores may differ, nats, by dtype of the teacher (docs/contract.md).
REPEAT_TOLERANCE = {"float32": 5e-5}
HALF_PRECISION_TOLERANCE = 0.1
REPEATED_TOKENS = 16


def clock(start: Start) -> str:
    """Compares this machine's clock with the date in the service's answer.

    Raises:
        ConfigurationError: the clocks are more than ``CLOCK_TOLERANCE`` apart.
    """
    theirs = service_date(start.config.teacher, start.config.run.name)
    if theirs is None:
        return "the service's answer has no date; not compared"
    apart = abs(theirs - time.time())
    if apart > CLOCK_TOLERANCE:
        raise ConfigurationError(
            f"this machine's clock and the teacher's are {apart:.0f} s apart",
            where="clock",
            fix="set both clocks by the network (timedatectl set-ntp true)",
        )
    return "this machine's and the teacher's agree"


def disk(start: Start) -> str:
    """Raises ConfigurationError when what the run keeps does not fit on the disk."""
    needed = run_bytes(start.config, start.student)
    return check_folder(start.config.run.output_dir, needed, "run.output_dir")


def run_bytes(config: TrainConfig, student: Student) -> int:
    """Bytes of what a run keeps: its checkpoints, one more while it is written, and the model.

    A checkpoint has two float32 moments for each trained parameter, and a float32 master
    if the parameter is bfloat16.
    """
    parameters = list(student.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    checkpoint = sum(p.numel() * (12 if p.element_size() == 4 else 14) for p in trained)
    model = sum(p.numel() * p.element_size() for p in parameters)
    return (config.checkpoint.keep + 1) * checkpoint + model


def repeat(start: Start) -> str:
    """Scores the same tokens twice. The two requests differ in one row, so that the second is
    not answered by a replay of the first.

    Raises:
        ContractMismatchError: the two scores differ by more than is allowed.
    """
    link, loss = start.teacher, start.config.loss
    prompt = start.prompts.first(start.config.run.seed)
    response = np.resize(prompt.token_ids, REPEATED_TOKENS).astype(np.int32)
    rows = np.arange(REPEATED_TOKENS, dtype=np.int32)
    ids = max(loss.asks(realigned=link.realigned).top_k, loss.student_top_k)
    k = min(ids, link.info.max_top_k)
    every = link.score_rows(prompt, response, rows, k, loss.temperature)
    later = link.score_rows(prompt, response, rows[1:], k, loss.temperature)
    first, second = every.rows.sampled, later.rows.sampled
    if first is None or second is None:
        return f"the teacher has no rows for {REPEATED_TOKENS} tokens of the prompt: {every.detail}"
    # Across tokenizers the rows of some positions are masked.
    known = first.valid[1:]
    apart = float(abs(first.values[1:] - second.values)[known].max(initial=0.0))
    allowed = REPEAT_TOLERANCE.get(link.info.identity.dtype, HALF_PRECISION_TOLERANCE)
    if apart > allowed:
        raise ContractMismatchError(
            f"the same tokens scored twice differ by {apart:.2g} nats, {allowed:.2g} are allowed",
            where="teacher.name",
            fix="run `teacher-server doctor` beside the teacher, or serve it with --deterministic",
            reason="SCORES_DISAGREE",
        )
    return f"{known.sum()} tokens scored twice lie {apart:.2g} nats apart"


def rows(start: Start) -> str:
    """What a teacher with another tokenizer gives of the start of a response, and why it is not
    more.

    Raises:
        LsmError: as ``TeacherLink.submit_rollouts``.
    """
    config, link = start.config, start.teacher
    if not link.realigned:
        return "those of the teacher: there is one tokenizer"
    prompt = start.prompts.first(config.run.seed)
    drawn = first_response(start.student, prompt, config.rollout, config.run.seed)
    found = realigned_rows(link, drawn, config.loss)
    told = describe_realigned(found, link)
    if found.realignment is None:
        return told
    classes, why = found.realignment.position_class, found.realignment.mask_reason
    counts = {name: count for name, count in reasons_of(classes, why).items() if count}
    reasons = ", ".join(f"{name} {count}" for name, count in counts.items())
    masked, coarse = (int((classes == kind).sum()) for kind in CLASSES_WITH_REASON)
    return (
        f"{told}; of {len(classes)} positions of a response {masked} are masked and {coarse} coarse"
        + (f" ({reasons})" if reasons else "")
    )


EXAMINATION = (
    Step("clock", clock, needs=("teacher",)),
    Step("disk", disk, needs=("student",), reads="model"),
    Step("repeat", repeat, needs=("tokenizer", "limits", "readings")),
    Step("rows", rows, needs=("tokenizer", "limits", "readings")),
    Step("memory", estimate.memory, needs=("student",), reads="model"),
    Step("time", estimate.duration, needs=("limits", "lengths", "ids", "readings")),
)

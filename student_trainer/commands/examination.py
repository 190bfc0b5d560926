"""What ``doctor`` checks besides the steps of a start, because a run does not need it or
because it takes longer."""

from __future__ import annotations

import time

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.checks import check_folder
from teacher_proto.types import CLASSES_WITH_REASON

from student_trainer.commands import estimate, estimate_time
from student_trainer.first_example import first_response, realigned_rows
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start, Step
from student_trainer.student.model import Student
from student_trainer.teacher.connection import service_date
from student_trainer.update.realigned import describe_realigned, reasons_of

# Seconds; beyond this, tokens and certificates may be valid on one side only.
CLOCK_TOLERANCE = 30.0


def clock(start: Start) -> str:
    """Compares this machine's clock with the date in the services' answers.

    Raises:
        ConfigurationError: the clocks are more than ``CLOCK_TOLERANCE`` apart.
    """
    found = []
    for name, settings in start.config.named_teachers.items():
        theirs = service_date(settings, start.config.run.name)
        if theirs is None:
            found.append(start.about(name, "the service's answer has no date; not compared"))
            continue
        apart = abs(theirs - time.time())
        if apart > CLOCK_TOLERANCE:
            whose = "the teacher's" if start.config.teachers is None else f"teacher {name}'s"
            raise ConfigurationError(
                f"this machine's clock and {whose} are {apart:.0f} s apart",
                where="clock",
                fix="set both clocks by the network (timedatectl set-ntp true)",
            )
        found.append(start.about(name, "this machine's and the teacher's agree"))
    return "; ".join(found)


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


def rows(start: Start) -> str:
    """What teachers with another tokenizer give of the start of a response, and why it is not
    more.

    Raises:
        LsmError: as ``TeacherLink.submit_rollouts``.
    """
    found = []
    for name, link in start.teachers.items():
        if link.realigned:
            found.append(start.about(name, rows_of(start, name)))
        else:
            told = "those of the teacher: there is one tokenizer"
            found.append(start.about(name, told))
    return "; ".join(found)


def rows_of(start: Start, name: str) -> str:
    """As ``rows``, of one teacher."""
    config, link = start.config, start.teachers[name]
    prompt = start.prompts.first(config.run.seed, teacher=name)
    drawn = first_response(start.student, prompt, config.rollout, config.run.seed)
    found = realigned_rows(
        link, drawn, config.rows_asked(name, realigned=True), config.loss.temperature
    )
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
    Step("rows", rows, needs=("tokenizer", "limits", "readings")),
    Step("memory", estimate.memory, needs=("student",), reads="model"),
    Step("time", estimate_time.duration, needs=("limits", "lengths", "ids", "readings")),
)

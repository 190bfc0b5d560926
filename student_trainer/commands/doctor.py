"""``student-trainer doctor CONFIG``: checks everything that ``train`` with the same settings
needs.

It loads the student and the prompts and makes the requests that the run would make. It
trains nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from teacher_proto.errors import ConfigurationError, ContractMismatchError

if TYPE_CHECKING:
    from teacher_proto.program.checks import Checks

    from student_trainer.data import PromptSets
    from student_trainer.settings.train import TrainConfig
    from student_trainer.student.model import Student
    from student_trainer.teacher.link import TeacherLink

# Seconds; beyond this, tokens and certificates may be valid on one side only.
CLOCK_TOLERANCE = 30.0
# By how much repeated scores may differ, nats, by dtype of the teacher (docs/contract.md).
REPEAT_TOLERANCE = {"float32": 5e-5}
HALF_PRECISION_TOLERANCE = 0.1
REPEATED_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="*", metavar="CONFIG.toml", help="as for train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; the exit code is that of the first failure."""
    from student_trainer.commands.shared import quiet_libraries, resolve

    quiet_libraries()
    checks = run_checks(lambda: resolve(arguments).settings)
    sys.stdout.write(checks.render(as_json=arguments.json))
    return checks.exit_code


def run_checks(settings: Callable[[], TrainConfig]) -> Checks:
    from teacher_proto.program.checks import Checks

    checks = Checks()
    with ExitStack() as stack:
        read: list[TrainConfig] = []

        def load() -> str:
            read.append(settings())
            return (
                f"run {read[0].run.name}, {read[0].run.steps} steps into {read[0].run.output_dir}"
            )

        checks.run("settings", load)
        if not read:
            return checks
        config = read[0]
        students: list[Student] = []
        prompts: list[PromptSets] = []
        links: list[TeacherLink] = []
        checks.run("run directory", lambda: check_run_directory(config))
        checks.run("trackers", lambda: check_trackers(config))
        checks.run("device", lambda: check_own_device(config))
        checks.run("teacher", lambda: check_teacher(config))
        checks.run("clock", lambda: check_clock(config), ("teacher",))
        checks.run("data", lambda: check_data(config, prompts))
        checks.run("student", lambda: check_student(config, students), ("device",))
        checks.run("disk", lambda: check_disk(config, students[0]), ("student",))
        checks.run(
            "tokenizer",
            lambda: check_tokenizer(config, students[0], links, stack),
            ("teacher", "student"),
        )
        checks.run(
            "limits", lambda: check_limits(config, students[0], links[0], prompts), ("tokenizer",)
        )
        checks.run(
            "repeat",
            lambda: check_repeat(config, links[0], prompts[0]),
            ("tokenizer", "limits", "data"),
        )
    return checks


def check_own_device(config: TrainConfig) -> str:
    import torch
    from teacher_proto.program.checks import check_device

    threads = torch.get_num_threads()
    return check_device(config.student.device, "student.device", torch.cuda, threads)


def check_run_directory(config: TrainConfig) -> str:
    from student_trainer.run.directory import RunDirectory, find_checkpoint
    from student_trainer.run.lock import check_free

    check_free(config.run.output_dir)
    found = find_checkpoint(RunDirectory(config.run.output_dir), config.checkpoint.resume)
    return f"continues from {found}" if found else "starts from the beginning"


def check_trackers(config: TrainConfig) -> str:
    from student_trainer.trackers import check_installed

    check_installed(config.tracking.trackers)
    return ", ".join(config.tracking.trackers) or "none but the run's own files"


def check_teacher(config: TrainConfig) -> str:
    from student_trainer.teacher.connection import check_reachable

    check_reachable(config.teacher, config.run.name)
    return f"{config.teacher.name} answers at {config.teacher.address}"


def check_clock(config: TrainConfig) -> str:
    """Compares this machine's clock with the date in the service's answer.

    Raises:
        ConfigurationError: the clocks are more than ``CLOCK_TOLERANCE`` apart.
    """
    from student_trainer.teacher.connection import service_date

    theirs = service_date(config.teacher, config.run.name)
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


def check_student(config: TrainConfig, students: list[Student]) -> str:
    from student_trainer.student.model import load_student
    from student_trainer.student.vocabulary import describe_vocabulary

    student = load_student(config.student)
    students.append(student)
    parameters = sum(p.numel() for p in student.module.parameters())
    ids = describe_vocabulary(student.head.undrawn, student.vocabulary_size)
    return f"{parameters / 1e6:.0f} M parameters, {ids}"


def check_disk(config: TrainConfig, student: Student) -> str:
    from teacher_proto.program.checks import check_folder

    return check_folder(config.run.output_dir, run_bytes(config, student), "run.output_dir")


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


def check_data(config: TrainConfig, prompts: list[PromptSets]) -> str:
    from student_trainer.prompt_needs import describe_prompts, notes, read_prompts

    found = read_prompts(config)
    prompts.append(found)
    return "; ".join([describe_prompts(found, config.evaluation), *notes(found, config)])


def check_tokenizer(
    config: TrainConfig, student: Student, links: list[TeacherLink], stack: ExitStack
) -> str:
    from student_trainer.teacher.link import TeacherLink
    from student_trainer.train import check_realigned

    link = TeacherLink(config.teacher, student, run=config.run.name)
    links.append(stack.enter_context(link))
    check_realigned(config, link)
    return link.describe_tokenizers()


def check_limits(
    config: TrainConfig, student: Student, link: TeacherLink, prompts: list[PromptSets]
) -> str:
    """Checks K and the lengths against the limits of the student and of the teacher.

    Args:
        prompts: empty when they could not be read; the run is then taken to evaluate.
    """
    from student_trainer.evaluation import evaluated_prompts
    from student_trainer.prompt_needs import check_ids
    from student_trainer.train import check_lengths, longest_response

    evaluates = config.evaluation.prompts != 0
    if prompts:
        check_ids(prompts[0], student)
        evaluates = bool(evaluated_prompts(prompts[0].held_out, config.evaluation))
    check_lengths(config, student, evaluates)
    longest = longest_response(config, evaluates)
    link.check_fits(
        top_k=config.loss.top_k,
        longest_prompt=config.data.max_prompt_tokens,
        longest_response=longest,
    )
    return (
        f"K {config.loss.top_k} of {link.info.max_top_k}, "
        f"{config.data.max_prompt_tokens + longest} tokens of {link.info.max_length}"
    )


def check_repeat(config: TrainConfig, link: TeacherLink, prompts: PromptSets) -> str:
    """Scores the same tokens twice. The two requests differ in one row, so that the second is
    not answered by a replay of the first.

    Raises:
        ContractMismatchError: the two scores differ by more than is allowed.
    """
    import numpy as np

    prompt = prompts.train[0]
    response = np.resize(prompt.token_ids, REPEATED_TOKENS).astype(np.int32)
    rows = np.arange(REPEATED_TOKENS, dtype=np.int32)
    k, temperature = config.loss.top_k, config.loss.temperature
    every = link.score_rows(prompt, response, rows, k, temperature)
    later = link.score_rows(prompt, response, rows[1:], k, temperature)
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

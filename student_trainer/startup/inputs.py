"""Steps that look at the prompts and at the student."""

from __future__ import annotations

from dataclasses import replace

import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Int32
from torch import nn

from student_trainer.data import PromptSets, run_clock
from student_trainer.data.rendering import PromptReader
from student_trainer.distributed.world import World
from student_trainer.prompt_needs import check_ids, describe_prompts, notes, read_prompts
from student_trainer.rollout.stopping import StopStrings, pieces_of
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.answers import AnswerRules, read_answers
from student_trainer.startup.start import Start
from student_trainer.student.model import Student, load_student, resolve_device
from student_trainer.student.response_ends import describe_terminators, ends_of_before
from student_trainer.student.terminators import STOP_IDS, template_end
from student_trainer.student.vocabulary import describe_vocabulary
from student_trainer.update.estimator import estimator_notes


def data(start: Start) -> str:
    """Reads the prompts. Raises ConfigurationError when the run cannot use them."""
    start.prompts = read_prompts(start.config, run_clock(start.config.data, kept=start.now))
    start.now = start.prompts.now
    for note in notes(start.prompts, start.config):
        start.warn(note)
    return describe_prompts(start.prompts, start.config.evaluation)


def estimator(start: Start) -> str:
    """Warns where the gradient is not that of the loss's whole divergence."""
    config = start.config
    for note in estimator_notes(config):
        start.warn(note)
    drawn = f"temperature {config.rollout.temperature:g} and top-p {config.rollout.top_p:g}"
    return f"{config.loss.kind} on what the student writes at {drawn}"


def student(start: Start) -> str:
    """Loads the student, from the checkpoint where there is one.

    Raises:
        ConfigurationError: it cannot be loaded or trained, or as ``check_dropout``.
    """
    torch.manual_seed(start.config.run.seed)
    weights = start.checkpoint / "model" if start.checkpoint else None
    config = start.config
    start.student = load_student(
        of_rank(config.student, start.world),
        weights,
        config.rollout.stop_ids,
        config.data.template_arguments,
    )
    check_dropout(start)
    parameters = sum(p.numel() for p in start.student.module.parameters())
    ids = describe_vocabulary(start.student.undrawn, start.student.vocabulary_size)
    return f"{parameters / 1e6:.0f} M parameters, {ids}"


def of_rank(settings: StudentSettings, world: World) -> StudentSettings:
    """The student's settings for one of several ranks, which has a GPU of its own."""
    if not world.several or resolve_device(settings.device).type != "cuda":
        return settings
    return settings.model_copy(update={"device": f"cuda:{world.local_rank}"})


def check_dropout(start: Start) -> None:
    """Refuses to continue without the model's own dropout a run that was made with it: before
    there was ``student.dropout``, updates had it.

    Raises:
        ConfigurationError: the checkpoint is of such a run.
    """
    if start.resumed is None or "dropout" in start.resumed.config["student"]:
        return
    if start.config.student.dropout or not has_own_dropout(start.student):
        return
    raise ConfigurationError(
        "the checkpoint's updates were made with the model's own dropout on, as they were before "
        "there was this setting, and it is off",
        where="student.dropout",
        fix="set it to true and name it in checkpoint.allow_changed, or start another run in "
        "another run.output_dir",
    )


def has_own_dropout(student: Student) -> bool:
    """Whether a layer of the model has a dropout (or layer dropping) above 0, as its updates
    would have it; a configuration also names dropouts of heads that are not there. Those of
    adapters do not count."""
    modules = student.causal_model.named_modules()
    layers = [module for name, module in modules if "lora_dropout" not in name]
    return any(
        isinstance(value, float) and value > 0
        for module in layers
        for name, value in vars(module).items()
        if "drop" in name or (name == "p" and isinstance(module, nn.modules.dropout._DropoutNd))
    )


def ends(start: Start) -> str:
    """What ends a response, and that it is what ended the checkpoint's.

    Raises:
        ConfigurationError: responses ended with other ids before.
    """
    config, student = start.config, start.student
    found, notes = describe_terminators(student, config.rollout)
    for note in notes:
        start.warn(note)
    if config.rollout.stop_strings:
        pieces_of(student.tokenizer)
    if start.resumed is not None and STOP_IDS not in config.checkpoint.allow_changed:
        before = ends_of_before(start.resumed.terminators, student, config.rollout.stop_ids)
        if before != student.terminators:
            raise ConfigurationError(
                f"the checkpoint's responses ended with the ids {list(before)}, and now {found}",
                where=STOP_IDS,
                fix=f"restore the student's files, name {STOP_IDS} in checkpoint.allow_changed to "
                "go on with these, or start another run in another run.output_dir",
            )
    return found


def ids(start: Start) -> str:
    """Raises ConfigurationError when a prompt has a token beyond the ids of the model."""
    check_ids(start.prompts, start.student)
    return f"the model has every id of the prompts, {start.student.vocabulary_size} ids"


def answers(start: Start) -> str:
    """Reads the answers of the data that the run learns from.

    Raises:
        ConfigurationError: as ``read_answers``.
    """
    config, student = start.config, start.student
    if not config.mixing.mixes:
        return "none of the data is learnt from"
    start.prompts, as_they_are = with_answers(start.prompts, config, student)
    if as_they_are:
        start.warn(
            f"the student's chat template does not go on from {as_they_are} prompts with their "
            "answers, as where it leaves out what its generation prompt has opened: these answers "
            "follow on the prompt as they are"
        )
    lengths = [len(one.response_ids) for one in start.prompts.train if one.response_ids is not None]
    end = student.tokenizer.convert_ids_to_tokens(answer_rules(config, student).end)
    return (
        f"{len(lengths)} answers, the longest has {max(lengths)} tokens; one that the chat "
        f"template does not end is ended with {end}"
    )


def with_answers(
    prompts: PromptSets, config: TrainConfig, student: Student
) -> tuple[PromptSets, int]:
    """The prompts with the tokens of their answers, and after how many of them the answer is not
    what the chat template goes on with. Raises what ``read_answers`` raises."""
    reader = PromptReader(student.tokenizer, config.data, prompts.now)
    rules = answer_rules(config, student)
    train, as_they_are = read_answers(prompts.train, reader, student.tokenizer, rules)
    return replace(prompts, train=train), as_they_are


def answer_rules(config: TrainConfig, student: Student) -> AnswerRules:
    """What an answer has to be, to be one that the student could have written."""
    template = template_end(
        student.causal_model, student.tokenizer, config.rollout.stop_ids,
        student.template_arguments,
    )  # fmt: skip
    named = (template.token_id, student.tokenizer.eos_token_id, *student.terminators)
    undrawn = frozenset(() if student.undrawn is None else student.undrawn.tolist())
    strings = config.rollout.stop_strings
    pieces = pieces_of(student.tokenizer) if strings else {}

    def completed(ids: Int32) -> int:
        if not strings:
            return 0
        texts = StopStrings(strings, pieces, 1)
        places = (n for n, token in enumerate(ids.tolist(), 1) if texts.completed([0], [token]))
        return next(places, 0)

    return AnswerRules(
        terminators=frozenset(student.terminators),
        end=next(token for token in named if token in student.terminators),
        most=config.rollout.max_new_tokens,
        drawn=lambda token: token < student.vocabulary_size and token not in undrawn,
        completed=completed,
    )


def lengths(start: Start) -> str:
    """Raises ConfigurationError when the longest sequence is longer than the student's
    positions."""
    check_lengths(start.config, start.student, start.evaluates)
    longest = start.config.data.max_prompt_tokens + longest_response(start.config, start.evaluates)
    return f"{longest} tokens of the student's {start.student.max_length}"


def check_lengths(config: TrainConfig, student: Student, evaluates: bool) -> None:
    """Refuses prompts and responses that are longer than the student's positions.

    Args:
        evaluates: whether there are prompts to evaluate on.

    Raises:
        ConfigurationError: the longest sequence is too long.
    """
    for key, new in response_limits(config, evaluates):
        longest = config.data.max_prompt_tokens + new
        if longest > student.max_length:
            raise ConfigurationError(
                f"data.max_prompt_tokens + {key} = {longest} is more than the student's "
                f"{student.max_length} positions",
                where=key,
                fix="lower one of them",
            )


def longest_response(config: TrainConfig, evaluates: bool) -> int:
    """Tokens of the longest response that the student may write."""
    return max(new for _, new in response_limits(config, evaluates))


def longest_scored(config: TrainConfig, evaluates: bool) -> int:
    """Tokens of the longest response that the run may send to the teacher: of a response to
    learn from what is scored of it, of an evaluation's all."""
    scored = config.scoring.scored(config.rollout.max_new_tokens)
    return max(scored, config.evaluation.max_new_tokens) if evaluates else scored


def response_limits(config: TrainConfig, evaluates: bool) -> list[tuple[str, int]]:
    """The settings that bound a response's length, with their values in tokens."""
    limits = [("rollout.max_new_tokens", config.rollout.max_new_tokens)]
    if evaluates:
        limits.append(("evaluation.max_new_tokens", config.evaluation.max_new_tokens))
    return limits

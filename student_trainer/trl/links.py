"""The teachers of a TRL run by name, and the student as their links see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError
from teacher_proto.models.text_model import text_model
from torch import nn

from student_trainer.losses.parts.loss import Loss, RowsAsked
from student_trainer.settings.teacher import (
    NamedTeacherSettings,
    TeacherSettings,
    check_names,
)
from student_trainer.student.model import Student, student_of
from student_trainer.teacher.link import TeacherLink

# One teacher, whose name nobody gave.
ONLY = "default"
TeacherChoice = str | TeacherSettings | Mapping[str, Any]


def named_settings(
    teachers: TeacherChoice | Mapping[str, TeacherChoice],
) -> dict[str, NamedTeacherSettings]:
    """Settings by name: of an address, of settings, or of a mapping of names to either. A mapping
    with an ``address``, or with no other keys than those of a teacher, is one teacher's settings.

    Raises:
        ConfigurationError: there are none, or a setting is wrong.
    """
    if isinstance(teachers, str | TeacherSettings):
        return {ONLY: settings_of(teachers, ONLY)}
    if not isinstance(teachers, Mapping):
        raise ConfigurationError(
            f"a {type(teachers).__name__} is no teacher",
            where="teachers",
            fix='give an address, "HOST:PORT", or a dict of names to addresses',
        )
    keys = NamedTeacherSettings.model_fields.keys()
    if teachers and ("address" in teachers or teachers.keys() <= keys):
        return {ONLY: settings_of(teachers, ONLY)}
    if not teachers:
        raise ConfigurationError(
            "there is no teacher", where="teachers", fix='give its address, "HOST:PORT"'
        )
    found = {name: settings_of(one, name) for name, one in teachers.items()}
    try:
        check_names(found)
    except ValueError as error:
        raise ConfigurationError(str(error), where="teachers") from None
    return found


def settings_of(one: TeacherChoice, name: str) -> NamedTeacherSettings:
    """The settings of one teacher. Raises ConfigurationError."""
    if isinstance(one, TeacherSettings):
        values: Mapping[str, Any] = {key: getattr(one, key) for key in type(one).model_fields}
    else:
        values = {"address": one} if isinstance(one, str) else one
    try:
        return NamedTeacherSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{key}: {first['msg']}",
            where=f"teachers[{name!r}]",
            fix="give an address, or the keys of [teachers.NAME] (docs/reference)",
        ) from None


def loss_of(loss: Loss | Mapping[str, Any] | str, where: str = "loss") -> Loss:
    """A loss: itself, the values of a section ``[loss]``, or its kind.

    Args:
        where: for errors.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    if isinstance(loss, Loss):
        return loss
    from pydantic import TypeAdapter

    from student_trainer.settings.kinds import LossConfig

    if not isinstance(loss, str | Mapping):
        raise ConfigurationError(
            f"a {type(loss).__name__} is no loss",
            where=where,
            fix='give a loss\'s kind, such as "lsm", or the keys of [loss] as a dict',
        )
    values = {"kind": loss} if isinstance(loss, str) else dict(loss)
    try:
        found: Loss = TypeAdapter(LossConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigurationError):
            raise cause from None
        key = ".".join([where, *map(str, first["loc"])])
        raise ConfigurationError(
            first["msg"].removeprefix("Value error, "),
            where=key,
            fix="see the losses and their keys in docs/reference/student-trainer-settings.md",
        ) from None
    return found


def student_of_trl(model: nn.Module, tokenizer: Any, arguments: Mapping[str, Any]) -> Student:
    """The model that TRL trains as a student.

    Args:
        model: not wrapped, but for adapters of peft.
        arguments: of the chat template.

    Raises:
        ConfigurationError: as ``student_of``.
    """
    whole: Any = model
    causal = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    was_training = model.training
    model.eval()
    try:
        return student_of(
            model,
            text_model(causal).decoder,
            tokenizer,
            Path(str(causal.config._name_or_path)),
            template_arguments=arguments,
        )
    finally:
        model.train(was_training)


class Links(Mapping[str, TeacherLink]):
    """A link to each teacher, by name.

    Attributes:
        settings: of each.
    """

    def __init__(
        self, settings: Mapping[str, NamedTeacherSettings], student: Student, run: str
    ) -> None:
        """
        Args:
            run: the name that the service counts shares and quotas by.

        Raises:
            LsmError: as ``TeacherLink``, of the first that cannot be used.
        """
        self.settings = dict(settings)
        with ExitStack() as opened:
            self._links = {
                name: opened.enter_context(
                    TeacherLink(one, student, run=run, key=f"teachers[{name!r}]")
                )
                for name, one in settings.items()
            }
            self._stack = opened.pop_all()

    def __getitem__(self, name: str) -> TeacherLink:
        return self._links[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def rows_asked(self, name: str, loss: Loss) -> RowsAsked:
        """What a loss asks of a teacher's rows, at the teacher's own K where it has one."""
        asked, own = loss.asks(realigned=self[name].realigned), self.settings[name].top_k
        return asked if own is None or not asked.top_k else replace(asked, top_k=own)

    def close(self) -> None:
        self._stack.close()

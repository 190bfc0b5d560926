"""Types that the sections of settings share, and sections that come in kinds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import expand_home

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
# A name that may be a path.
PathOrName = Annotated[str, Field(min_length=1), AfterValidator(expand_home)]


class Settings(BaseModel):
    """A section. Unknown keys are refused, and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return expand_home(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Kinds:
    """Marks a field whose section comes in kinds: ``Annotated[SerializeAsAny[Base], Kinds(...)]``.
    The section's key ``kind`` says which class its other keys belong to.

    Attributes:
        where: dotted key of the section, for errors.
        named: the classes that have a name; each has it as the default of its ``kind``.
        load: the class of a kind with a colon, ``package.module:Name``. Raises
            ConfigurationError.
        default: the kind of a section without one; None where it has to have one.
    """

    where: str
    named: Mapping[str, type[BaseModel]]
    load: Callable[[str], type[BaseModel]]
    default: str | None = None

    def of(self, kind: object) -> type[BaseModel]:
        """The class of a kind.

        Raises:
            ConfigurationError: there is none.
        """
        if isinstance(kind, str) and kind in self.named:
            return self.named[kind]
        if isinstance(kind, str) and ":" in kind:
            return self.load(kind)
        names = ", ".join(self.named)
        close = difflib.get_close_matches(str(kind), self.named, n=1)
        what = "is required and not set" if kind is None else f"there is no kind {kind!r}"
        raise ConfigurationError(
            what,
            where=f"{self.where}.kind",
            fix=f"{f'did you mean {close[0]}? ' if close else ''}there are {names}, and classes of "
            "your own as package.module:Name",
        )

    def at(self, values: object) -> list[type[BaseModel]]:
        """The classes that a section with these values may be of; without values, those that
        have a name.

        Raises:
            ConfigurationError: the values name a kind that there is not.
        """
        kind = values.get("kind") if isinstance(values, Mapping) else None
        chosen = [] if kind is None else [self.of(kind)]
        return [*chosen, *(named for named in self.named.values() if named not in chosen)]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._chosen, handler(source))

    def _chosen(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            named = self.named.get(getattr(value, "kind", ""))
            if named is not None and type(value) is not named:
                raise ValueError(_has_anothers_kind(type(value), value.kind))
            return value
        kind = value.get("kind", self.default)
        return self.of(kind).model_validate({"kind": kind, **value})


def called_by_its_name(kind: type[BaseModel], values: Any) -> Any:
    """The values of a section of this class, with its ``kind``: a class without one of its own is
    called by its dotted name. For a validator before the fields' own.

    Raises:
        ValueError: they have a dotted name, and the class has a kind.
    """
    if not isinstance(values, Mapping):
        return values
    own, said = kind.model_fields["kind"].default, values.get("kind")
    if own and ":" in str(said):
        raise ValueError(_has_anothers_kind(kind, own))
    return values if said or own else {**values, "kind": f"{kind.__module__}:{kind.__qualname__}"}


def _has_anothers_kind(found: type, kind: str) -> str:
    return (
        f"{found.__name__} already has the kind {kind!r}, its own or that of the class it "
        'extends: write `kind: str = ""` in it, and it is called by its dotted name'
    )


def annotation_of(field: FieldInfo) -> Any:
    """A field's annotation, with the mark of a section that comes in kinds."""
    marks = [mark for mark in field.metadata if isinstance(mark, Kinds)]
    return Annotated[field.annotation, marks[0]] if marks else field.annotation

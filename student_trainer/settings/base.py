"""Types that all sections of the settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
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

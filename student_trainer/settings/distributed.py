"""Settings of a run with several ranks (docs/distributed.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from student_trainer.settings.base import Positive, Settings


class DistributedSettings(Settings):
    """The ranks of a run, where torchrun starts several; one process reads nothing of it."""

    timeout: Positive = Field(
        default=1800.0,
        description="Seconds that ranks wait for each other at most, also while rank 0 evaluates.",
    )
    reshard: Literal["after_update", "after_pass"] = Field(
        default="after_update",
        description="When a rank frees the parameters that it has gathered: after an update's "
        "last backward pass, or after each pass, which takes less memory and gathers them again "
        "for the next.",
    )

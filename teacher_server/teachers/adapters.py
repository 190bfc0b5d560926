"""Which teachers are LoRA adapters, and which teacher's engine holds each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from teacher_proto.errors import ConfigurationError

from teacher_server.engines.adapter import Adapter, is_adapter, names_model, read_adapter
from teacher_server.settings.teachers import TeacherSettings


def adapters_by_base(
    configured: Mapping[str, TeacherSettings],
) -> dict[str, dict[str, Adapter]]:
    """Name of each teacher that is a whole model -> its adapters by the names of their teachers.

    Raises:
        ConfigurationError: an adapter cannot be used, or its base is not among the teachers.
    """
    found: dict[str, dict[str, Adapter]] = {
        name: {} for name, settings in configured.items() if not is_adapter(settings.model)
    }
    for name, settings in configured.items():
        where = f"teachers.{name}"
        if name in found:
            if settings.base is not None:
                raise ConfigurationError(
                    f"{settings.model} is no LoRA adapter, so it has no base",
                    where=f"{where}.base",
                    fix="leave it out, or give the folder that PEFT saved",
                )
            continue
        if settings.own_engine_settings:
            raise ConfigurationError(
                f"{', '.join(settings.own_engine_settings)} cannot be set for a LoRA adapter, "
                "which runs on its base's engine",
                where=where,
                fix="set it for the base",
            )
        adapter = read_adapter(Path(settings.model).expanduser())
        bases = (
            [base for base in found if names_model(adapter.base, configured[base].model)]
            if settings.base is None
            else [settings.base]
        )
        if len(bases) != 1 or bases[0] not in found:
            raise ConfigurationError(
                f"its base {settings.base or adapter.base or 'without a name'} is "
                + ("served more than once" if len(bases) > 1 else "not served"),
                where=where,
                fix=f"serve the base too (--teacher NAME=PATH) and set {where}.base=NAME; "
                f"teachers with a whole model: {', '.join(found) or 'none'}",
            )
        found[bases[0]][name] = adapter
    return found

"""An engine that the settings name can be made, and only such an engine."""

from __future__ import annotations

from typing import get_args

from teacher_server.settings.teachers import EngineSettings
from teacher_server.teachers.load import ENGINES


def test_the_settings_and_the_table_name_the_same_engines() -> None:
    assert set(ENGINES) == set(get_args(EngineSettings.model_fields["name"].annotation))

"""The settings of models that change what their LM head puts out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from teacher_proto.program.logit_treatment import LogitTreatment, read_logit_treatment


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, LogitTreatment()),
        ({"final_logit_softcapping": 30}, LogitTreatment(softcap=30.0)),
        ({"final_logit_softcapping": None, "logit_scale": None}, LogitTreatment()),
        ({"logit_scale": 0.0625}, LogitTreatment(0.0625)),
        ({"lm_head_multiplier": 0.5, "logits_scaling": 8}, LogitTreatment(0.0625)),
    ],
)
def test_what_a_configuration_asks_for(
    settings: dict[str, float | None], expected: LogitTreatment
) -> None:
    assert read_logit_treatment(SimpleNamespace(**settings)) == expected

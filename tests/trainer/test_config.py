"""What a configuration refuses, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings import load_settings
from teacher_proto.program.settings_show import to_toml

from student_trainer.losses import LsmLoss, SampledTokenLoss
from student_trainer.settings.train import TrainConfig

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"top_k": 1}}, "the loss is identically 0"),
        ({"loss": {"kind": "unnormalised"}}, "kind"),
        ({"loss": {"kind": "topk_jsd", "beta": 1.0}}, "beta"),
        ({"loss": {"kind": "unnormalised_reverse_kl"}}, "study = true"),
        ({"loss": {"support": "student", "support_mass": 0.9}}, "support_mass"),
        ({"loss": {"kind": "sampled_token", "gamma": 1.5}}, "gamma"),
        ({"loss": {"kind": "full_jsd"}}, "kind"),
        ({"loss": {"kind": "generalised_reverse_kl", "tail": "bucket"}}, "tail"),
        ({"loss": {"kind": "generalised_reverse_kl", "coarse": "mask"}}, "Remove loss.coarse"),
        ({"loss": {"kind": "entropy_switch", "entropy_threshold": -1}}, "entropy_threshold"),
        ({"loss": {"kind": "fixed_advantage"}}, "study = true"),
        ({"loss": {"kind": "fixed_advantage", "study": True, "advantage": 1}}, "less than 0"),
        ({"loss": {"clip": 0.1}}, "clip"),
        ({"data": {"held_out": "x", "held_out_fraction": 0.1}}, "exclude each other"),
        ({"evaluation": {"frozen_rows": 100}}, "at least 256"),
        ({"optimizer": {"micro_batch_tokens": 83}}, "longest sequence"),
        ({"optimizer": {"updates_per_batch": 4}}, "must divide the step's 6 responses"),
        ({"rollout": {"temperature": 0}}, "greater than 0"),
        ({"rollout": {"temperature": float("nan")}}, "finite"),
        ({"rollout": {"top_p": 1.5}}, "less than or equal to 1"),
        ({"loss": {"kind": "sampled_token", "temperature": 0.5}}, "must equal rollout.temperature"),
        ({"student": {"dtype": "float16"}}, "float32"),
    ],
)
def test_refusals(make_config: MakeConfig, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**sections)


def test_kinds_of_losses(make_config: MakeConfig) -> None:
    assert isinstance(make_config().loss, LsmLoss)
    sampled = make_config(loss={"kind": "sampled_token", "advantage_clamp": 5, "top_k": 0}).loss
    assert isinstance(sampled, SampledTokenLoss)
    assert sampled.advantage_clamp == 5
    raw = make_config().model_dump() | {"loss": {"top_k": 9}}
    assert TrainConfig.model_validate(raw).loss == LsmLoss(top_k=9)


def test_the_resolved_file_gives_the_same_settings(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        student={"lora": {"rank": 3, "target_modules": ["q_proj"]}},
        loss={"kind": "sampled_token"},
        data={"template_arguments": {"enable_thinking": False}},
    )
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert load_settings(TrainConfig, [file]).settings == config


def test_an_error_names_key_value_and_origin(make_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(make_config()))
    with pytest.raises(ConfigurationError) as caught:
        load_settings(TrainConfig, [file], overrides=["loss.top_k=1"])
    text = str(caught.value)
    assert "loss.top_k" in text
    assert "--set" in text
    assert "identically 0" in text
    with pytest.raises(ConfigurationError, match="micro_batch_tokens"):
        load_settings(TrainConfig, [file], overrides=["optimizer.microbatch_tokens=9"])

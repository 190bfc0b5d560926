"""LoRA adapters inside a model of transformers, applied by PEFT."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load_file
from teacher_proto.errors import ConfigurationError

from teacher_server.engines.adapter import PREFIX, WEIGHTS_FILE, Adapter


class ModelAdapters:
    """The adapters of one model, of which at most one is applied at a time.

    Args:
        model: PEFT replaces its linear layers; at first the base alone is selected.
        adapters: by name.

    Raises:
        ConfigurationError: PEFT is missing or cannot apply an adapter.
    """

    def __init__(self, model: Any, adapters: Mapping[str, Adapter]) -> None:
        self._keys = {name: f"adapter{number}" for number, name in enumerate(adapters)}
        self._layers: list[Any] = []
        self._selected = ""
        if not adapters:
            return
        if importlib.util.find_spec("peft") is None:
            raise ConfigurationError(
                "a teacher is a LoRA adapter and peft is not installed",
                where="teachers",
                fix="pip install peft, or use the vllm engine",
            )
        from peft.tuners.tuners_utils import BaseTunerLayer

        with warnings.catch_warnings():
            # PEFT warns about a second adapter, which is meant here.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            for name, adapter in adapters.items():
                _apply(model, adapter, self._keys[name])
        model.eval().requires_grad_(False)
        self._layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        self._set("")

    def select(self, name: str) -> None:
        """Applies this adapter from now on; "" selects the base alone."""
        if name != self._selected:
            self._set(name)

    def _set(self, name: str) -> None:
        for layer in self._layers:
            layer.enable_adapters(bool(name))
            if name:
                layer.set_adapter(self._keys[name], inference_mode=True)
        self._selected = name


def _apply(model: Any, adapter: Adapter, key: str) -> None:
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    where = f"adapter {adapter.directory}"
    tensors = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in load_file(adapter.directory / WEIGHTS_FILE).items()
    }
    try:
        config = PeftConfig.from_pretrained(adapter.directory)
        config.inference_mode = True
        inject_adapter_in_model(config, model, key)
        unused = set_peft_model_state_dict(model, tensors, key).unexpected_keys
    except (ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        raise ConfigurationError(
            f"PEFT cannot apply it: {error}",
            where=where,
            fix="serve the base that the adapter was trained on",
        ) from error
    if unused:
        raise ConfigurationError(
            f"its target_modules leave out tensors that it holds: {', '.join(unused[:3])}",
            where=where,
            fix="save it again with PEFT's save_pretrained",
        )

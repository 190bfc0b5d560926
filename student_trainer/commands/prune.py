"""``student-trainer prune``: a student made by removing whole layers from a causal
language model.

The saved model is loaded again and must give the same logits as the network it was
saved from, with and without a key-value cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError, first_line
from teacher_proto.models.folder import read_tokenizer
from teacher_proto.program.files import atomic_folder

from student_trainer.commands.shared import check_output, probe_ids
from student_trainer.student.layers import drop_layers, layers_to_drop

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pruned:
    """The result of pruning.

    Attributes:
        output: the folder of the new model.
        layers: how many layers the model had.
        dropped: the indices of the removed layers, ascending.
        parameters_before, parameters_after: number of distinct parameters.
    """

    output: Path
    layers: int
    dropped: tuple[int, ...]
    parameters_before: int
    parameters_after: int


def prune(
    model: str, output: Path, *, drop: Sequence[int] | None = None, keep: int | None = None
) -> Pruned:
    """Saves ``model`` without some of its layers, with its tokenizer, to ``output``.

    Args:
        model: folder or hub name of a causal language model of transformers.
        output: a folder that does not exist yet, or is empty.
        drop, keep: as for ``layers_to_drop``.

    Raises:
        ConfigurationError: the layers are wrong; the output is in use; the model cannot be
            loaded; its layers cannot be found; or the saved model differs from the pruned
            one when it is loaded again.
    """
    check_output(output)
    from student_trainer.student.loading import save_network, save_processor_files

    network, tokenizer, folder = _load(model)
    layers = int(network.config.get_text_config().num_hidden_layers)
    dropped = layers_to_drop(layers, drop=drop, keep=keep)
    before = network.num_parameters()
    drop_layers(network, dropped)
    with atomic_folder(output, readable=True) as work:
        save_network(network, work)
        tokenizer.save_pretrained(work)
        save_processor_files(folder, work)
        _check_reload(network, work, model)
    return Pruned(output, layers, dropped, before, network.num_parameters())


def _load(model: str) -> tuple[Any, Any, Path]:
    import transformers

    from student_trainer.student.loading import load_network, student_folder

    try:
        folder = student_folder(model)
        network, _ = load_network(folder, "auto", model)
        tokenizer = read_tokenizer(transformers, folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"cannot load it as a causal language model: {first_line(error)}",
            where=f"--model {model}",
            fix="give a folder or hub name with config.json, safetensors and a tokenizer",
        ) from error
    return network.eval(), tokenizer, folder


def _check_reload(network: Any, folder: Path, model: str) -> None:
    import torch

    from student_trainer.student.loading import load_network

    try:
        again = load_network(folder, "auto", model)[0].eval()
        pairs = list(zip(_probe(network), _probe(again), strict=True))
        equal = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)
        reason = "it gives other logits"
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        equal, reason = False, first_line(error)
    if not equal:
        raise ConfigurationError(
            f"the pruned {type(network).__name__} is not the same when loaded again: {reason}; "
            "its layers depend on their index in a way its configuration cannot express",
            where=f"--model {model}",
            fix="drop other layers, or prune this architecture by hand",
        )


def _probe(network: Any) -> tuple[Tensor, Tensor]:
    """float32 logits of a fixed sequence: in one pass, and of its last token after a cached
    prefix."""
    import torch

    ids = probe_ids(network)
    with torch.inference_mode():
        whole = network(input_ids=ids, use_cache=False).logits.float()
        prefix = network(input_ids=ids[:, :-1], use_cache=True)
        last = network(
            input_ids=ids[:, -1:], past_key_values=prefix.past_key_values, use_cache=True
        ).logits.float()
    return whole, last


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder or hub name of the model to prune")
    parser.add_argument("--output", required=True, type=Path, help="folder of the new model")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--drop", type=_indices, metavar="I,J,...", help="layers to remove, counted from 0"
    )
    which.add_argument(
        "--keep", type=int, metavar="N", help="how many layers to keep, evenly spaced"
    )


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of layer numbers such as 3,5,7"
        ) from error


def run(arguments: argparse.Namespace) -> int:
    result = prune(arguments.model, arguments.output, drop=arguments.drop, keep=arguments.keep)
    sys.stdout.write(
        f"dropped layers {', '.join(map(str, result.dropped))} of {result.layers}: "
        f"{result.parameters_before / 1e6:.1f} to {result.parameters_after / 1e6:.1f} million "
        f"parameters\nwrote {result.output}\n"
    )
    return 0

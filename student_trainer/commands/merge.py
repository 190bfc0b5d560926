"""``student-trainer merge``: LoRA adapters folded into their base model.

The saved model is loaded again and must give the logits of the base model with its
adapters.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError, LsmError, first_line
from teacher_proto.models.folder import read_tokenizer
from teacher_proto.program.files import atomic_folder

from student_trainer.commands.shared import check_output, probe_ids

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter_config.json"
# Relative to the largest logit; merging rounds a bfloat16 weight once more.
MERGE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def find_adapter(path: Path) -> Path:
    """The folder of the adapter: ``path`` itself, a run's final model, or the model of its
    newest undamaged checkpoint.

    Raises:
        ConfigurationError: there is no adapter.
    """
    from student_trainer.run import checkpoint
    from student_trainer.run.directory import RunDirectory

    run = RunDirectory(path)
    places = [path, run.model]
    if run.checkpoints.is_dir() and (found := checkpoint.newest_good(run.checkpoints)):
        places.append(found / "model")
    for place in places:
        if (place / ADAPTER).exists():
            return place
    raise ConfigurationError(
        f"there is no {ADAPTER} in it, in its model nor in its checkpoints",
        where=str(path),
        fix="give the folder of a LoRA adapter, or the output_dir of a run with student.lora",
    )


def merge(source: Path, output: Path, *, base: str | None = None) -> Path:
    """Folds the adapters into the weights of their base model and saves it, in the base
    model's dtype and with the adapter's tokenizer.

    Args:
        source: as for ``find_adapter``.
        output: a folder that does not exist yet, or is empty.
        base: folder or hub name of the base model, when it is not where the adapter's
            configuration says.

    Returns:
        The folder of the adapter.

    Raises:
        ConfigurationError: there is no adapter, the output is in use, or the base model
            cannot be loaded or is another one.
        LsmError: the merged model gives other logits than the adapted one.
    """
    from student_trainer.student.loading import save_network, save_processor_files

    check_output(output)
    adapter = find_adapter(source)
    noted = json.loads((adapter / ADAPTER).read_text()).get("base_model_name_or_path")
    network, tokenizer, folder = _load(adapter, base or noted)
    adapted = _probe(network)
    with atomic_folder(output, readable=True) as work:
        save_network(network.merge_and_unload(), work)
        tokenizer.save_pretrained(work)
        save_processor_files(folder, work)
        _check(adapted, work)
    return adapter


def _load(adapter: Path, base: str | None) -> tuple[Any, Any, Path]:
    """The base with its adapters, their tokenizer, and the folder of the base."""
    import transformers
    from peft import PeftModel

    from student_trainer.student.loading import load_network, student_folder
    from student_trainer.student.lora import BASE_FILE, base_weights_digest, check_base

    if base is None:
        raise ConfigurationError(
            f"its {ADAPTER} does not name the base model", where=str(adapter), fix="give --base"
        )
    fix = "give the base model's folder or hub name with --base"
    try:
        folder = student_folder(base)
        model, _ = load_network(folder, "auto", base)
        network = PeftModel.from_pretrained(model, str(adapter)).eval()
        tokenizer = read_tokenizer(transformers, adapter)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"cannot load the base model {base!r} with these adapters: {first_line(error)}",
            where=str(adapter),
            fix=fix,
        ) from error
    check_base(
        adapter,
        base_weights_digest(folder),
        where=str(folder),
        fix=f"{fix}; without {BASE_FILE} beside the adapters, any base of their shapes is taken",
    )
    return network, tokenizer, folder


def _probe(network: Any) -> Tensor:
    """float32 logits [T, V] of a fixed sequence."""
    import torch

    with torch.inference_mode():
        logits: Tensor = network(input_ids=probe_ids(network), use_cache=False).logits[0].float()
    return logits


def _check(adapted: Tensor, folder: Path) -> None:
    from student_trainer.student.loading import load_network

    merged = load_network(folder, "auto", str(folder))[0].eval()
    dtype = str(merged.dtype).removeprefix("torch.")
    difference = float((_probe(merged) - adapted).abs().max())
    largest = max(float(adapted.abs().max()), 1.0)
    if not difference <= MERGE_TOLERANCE.get(dtype, MERGE_TOLERANCE["bfloat16"]) * largest:
        raise LsmError(
            f"the merged model's logits differ from the adapted one's by {difference:.3g} "
            f"(largest {largest:.3g})",
            where=str(folder),
            fix="use the adapters unmerged",
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="RUN_DIR_or_ADAPTER", help="a run, or an adapter's folder"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of the merged model")
    parser.add_argument("--base", help="folder or hub name of the base model, if it has moved")


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.commands.shared import quiet_libraries

    quiet_libraries()
    adapter = merge(arguments.source, arguments.output, base=arguments.base)
    sys.stdout.write(f"merged {adapter} into {arguments.output}\n")
    return 0

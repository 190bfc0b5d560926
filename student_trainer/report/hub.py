"""Pushing the final model to the hub, and ``student-trainer push RUN_DIR``.

``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read by
huggingface_hub itself; the token is never shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError, LsmError, first_line


def check_can_push(repo: str) -> None:
    """Checks before a run that its model can be pushed afterwards.

    Raises:
        ConfigurationError: the hub is switched off, there is no token, or the hub
            refuses it.
        LsmError: the hub does not answer.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConfigurationError(
            "HF_HUB_OFFLINE is set, so nothing can be pushed",
            where=f"hub.repo = {repo}",
            fix="unset it, or leave hub.repo out and run later: student-trainer push RUN_DIR",
        )
    if huggingface_hub.get_token() is None:
        raise ConfigurationError(
            "there is no token for the hub",
            where=f"hub.repo = {repo}",
            fix="set HF_TOKEN, or run: hf auth login",
        )
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # HTTP errors of several libraries, without a common root
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ConfigurationError(
                f"the hub does not take the token ({status})",
                where=f"hub.repo = {repo}",
                fix="make another token with write access and set HF_TOKEN",
            ) from error
        fix = "check the network and HF_ENDPOINT"
        raise _failed("the hub does not answer", error, repo, fix) from error


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Uploads every file of ``folder`` as one commit; returns the commit's address.

    Raises:
        ConfigurationError: there is no finished model in the folder.
        LsmError: the hub refused it or did not answer. The folder is unchanged.
    """
    import huggingface_hub

    if not (folder / "README.md").exists() or not any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            "it holds no finished model with its card",
            where=str(folder),
            fix="give the output_dir of a run that came to its end",
        )
    api: Any = huggingface_hub.HfApi()
    again = f"the model is in {folder}; run: student-trainer push {folder.parent} --repo {repo}"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message="Model and card"
        )
    except Exception as error:
        raise _failed("the model was not pushed", error, repo, again) from error
    return str(commit.commit_url)


def _failed(what: str, error: Exception, repo: str, fix: str) -> LsmError:
    return LsmError(
        f"{what}: {first_line(error)}", where=f"hub.repo = {repo}", fix=fix, reason="HUB"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="output_dir of a run")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where to")
    parser.add_argument(
        "--public", action="store_true", help="make the repository public if it is made now"
    )


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.run.directory import RunDirectory

    check_can_push(arguments.repo)
    folder = RunDirectory(arguments.run_dir).model
    address = push(folder, arguments.repo, private=not arguments.public)
    sys.stdout.write(f"pushed {folder} to {address}\n")
    return 0

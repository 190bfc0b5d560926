"""Settings of rollouts that vLLM writes (docs/rollouts.md). Times in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from student_trainer.settings.base import Positive, PositiveInt, Settings

Place = Literal["colocated", "own", "server"]


class VllmSettings(Settings):
    """vLLM as the writer of the student's responses, with `rollout.engine = "vllm"`."""

    place: Place = Field(
        default="colocated",
        description="Where vLLM runs: beside the trainer on the student's device (`colocated`), in "
        "processes of the trainer's on GPUs of their own (`own`, with `rollout.vllm.devices`), or "
        "as a server that somebody else has started (`server`, with `rollout.vllm.address`).",
    )
    devices: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="The GPUs of `own`, as in CUDA_VISIBLE_DEVICES: `1` or `1,2`. More than one "
        "needs `rollout.vllm.options.tensor_parallel_size`.",
    )
    address: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = Field(
        default=None, description="Address of the `server`, such as `http://127.0.0.1:8000`."
    )
    sleep: bool = Field(
        default=False,
        description="vLLM gives its GPU memory back whenever it does not write: while the student "
        "is updated, and in steps of answers alone. It takes time twice a step; for `colocated`, "
        "on a GPU.",
    )
    hand_over: Literal["file", "nccl"] | None = Field(
        default=None,
        description="How vLLM gets the weights: as a file in memory (`file`), or by its own weight "
        "transfer between GPUs (`nccl`, not for `colocated`). Unset: `nccl` for a student on a GPU "
        "with vLLM on GPUs of its own, otherwise `file`.",
    )
    folder: Path = Field(
        default=Path("/dev/shm"),
        description="Where the file with the weights is for as long as the hand-over takes; vLLM "
        "has to see the same folder, and it should be in memory.",
    )
    transfer_address: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1",
        description="Address of this machine as vLLM sees it, for `nccl` to a `server` elsewhere.",
    )
    max_log_prob_gap: Positive | None = Field(
        default=None,
        description="A batch is refused when the log-probabilities that vLLM has drawn with differ "
        "from the trainer's own by more than this on average, in nats. Unset: by "
        "`student.dtype`, 0.0001 with float32 and 0.1 with bfloat16.",
    )
    gap_tokens: PositiveInt = Field(
        default=256, description="Tokens of each batch that are compared, of whole responses."
    )
    answer_seconds: Positive = Field(
        default=300.0,
        description="vLLM counts as gone when it has said nothing for so long: no token of any "
        "response while it writes, no answer to a hand-over.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Engine arguments of vLLM by name, passed through as they are; not for "
        "`server`.",
    )

    @model_validator(mode="after")
    def _fits_the_place(self) -> VllmSettings:
        for key, value, place in (
            ("devices", self.devices, "own"),
            ("address", self.address, "server"),
        ):
            if (value is None) == (self.place == place):
                what = "needs" if value is None else "does not go with"
                raise ValueError(f'place = "{self.place}" {what} {key}')
        if self.sleep and self.place != "colocated":
            raise ValueError(f'place = "{self.place}" does not share memory: leave sleep out')
        if self.hand_over == "nccl" and self.place == "colocated":
            raise ValueError(
                "nccl connects different GPUs, and colocated is on the student's own: use file"
            )
        if self.options and self.place == "server":
            raise ValueError("options are those of a vLLM that the trainer starts, not of a server")
        return self

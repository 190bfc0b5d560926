"""The vLLM engine in our service against vLLM itself, on the same sequences and cores.

SmolLM2-135M, K=64, random ids, fresh in every repetition, sides alternated,
medians of the ratios pair by pair. All sides run the same vLLM with the same
step size; one computes while the others wait. Stock vLLM spins for a second after
every message; a side begins when the machine is idle again.

    prefill  vLLM offline, one token sampled, no log-probabilities
    flat     vLLM offline, prompt_logprobs=64, flat_logprobs, no detokenisation
    objects  the same without flat_logprobs
    http     vLLM's HTTP server as it starts by itself, prompt_logprobs=64: on a CPU
             it leaves one core to its front end
    http_all the same, told to compute on every core as all other sides are
    service  a teacher-server process over gRPC

Workloads: *whole*, 8 sequences of 512 with every row wanted; *span*, 8 responses
of 128 after prompts of 384 of their own; *shared*, 8 responses of 128 after one
prompt of 384. Tokens are those of the sequences, whatever was shared.

Figures are ratios of tokens/s; ``service_over_*`` on whole, ``span_over_*`` and
``shared_over_flat`` on the others. ``bytes_per_token`` are those of a reply.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from teacher_proto import TeacherClient, codec
from teacher_proto.types import Continuation, Int32, ScoreRequest, Segment, TeacherInfo, TokenPrompt

from benchmarks.harness import alternate, median_ratio, print_table, write_result

TOP_K = 64
TIMEOUT = 900.0
SEQUENCES, LENGTH, PROMPT = 8, 512, 384
STEP_TOKENS = 2048
CACHE_BYTES = 2**30
# vLLM would leave one core to its scheduler; every side but "http" gets them all.
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
os.environ.setdefault(BINDING, "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# vLLM 0.32 writes its ahead-of-time compiled model and cannot read it back on a CPU;
# the cache of torch.compile below it works, and every side compiles once.
os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
# Load of the machine, percent, at which it counts as idle, and how long to wait for it.
IDLE_PERCENT, IDLE_TIMEOUT = 10.0, 20.0


@dataclass(frozen=True)
class Sample:
    """Sequences int32 [LENGTH]; rows are wanted after ``prompt`` tokens."""

    sequences: tuple[Int32, ...]
    prompt: int
    shared: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    @classmethod
    def make(cls, kind: str, repetition: int, vocabulary: int) -> Sample:
        random = np.random.default_rng([repetition + 1000, len(kind)])
        drawn = random.integers(0, vocabulary, (SEQUENCES, LENGTH), dtype=np.int32)
        if kind == "shared":
            drawn[:, :PROMPT] = drawn[0, :PROMPT]
        return cls(tuple(drawn), 1 if kind == "whole" else PROMPT, kind == "shared")


@contextmanager
def process(
    command: Sequence[str],
    is_ready: Callable[[], bool],
    log: Path,
    without: Sequence[str] = (),
) -> Iterator[int]:
    """A child with this environment but for the variables in ``without``; its id."""
    environment = {name: value for name, value in os.environ.items() if name not in without}
    with log.open("w") as sink:
        started = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
    try:
        while not is_ready():
            if started.poll() is not None:
                raise SystemExit(f"{command[2]} ended:\n{log.read_text()}")
            time.sleep(0.2)
        yield started.pid
    finally:
        started.terminate()
        started.wait()


class Service:
    """Our server. A shared prompt is one request; the others are one each, in flight together."""

    def __init__(self, stack: ExitStack, folder: Path, model: Path, arguments: Any) -> None:
        ready = folder / "ready.json"
        options = ["--model", str(model), "--engine", "vllm", "--dtype", arguments.dtype]
        options += ["--max-batch-tokens", str(STEP_TOKENS), "--ready-file", str(ready)]
        options += ["--set", f"engine.vllm.kv_cache_memory_bytes={CACHE_BYTES}"]
        options += ["--set", f"engine.vllm.enforce_eager={str(arguments.eager).lower()}"]
        command = [sys.executable, "-m", "teacher_server", "serve", *options]
        command += ["--grpc-port", "0", "--http-port", "0"]
        self.pid = stack.enter_context(process(command, ready.exists, folder / "service.log"))
        address = json.loads(ready.read_text())["grpc_address"]
        self._client = stack.enter_context(TeacherClient(address, run="bench"))
        (self.info,) = self._client.get_teacher(timeout=TIMEOUT).teachers
        self._count = 0
        self.bytes_per_token = 0.0

    def score(self, sample: Sample) -> None:
        tails = [Continuation((Segment(s[sample.prompt :]),)) for s in sample.sequences]
        prompts = [s[: sample.prompt] for s in sample.sequences]
        if sample.shared:
            requests = [self._request(self.info, prompts[0], tails)]
        else:
            requests = [
                self._request(self.info, p, [t]) for p, t in zip(prompts, tails, strict=True)
            ]
        futures = [self._client.submit(request, timeout=TIMEOUT) for request in requests]
        replies = [future.result() for future in futures]
        rows = size = 0
        for reply in replies:
            for scores in reply.results:
                assert scores.rows.support is not None
                rows += len(scores.rows.support.ids)
            size += len(codec.serialize(codec.encode_reply(reply)))
        assert rows == sum(len(s) - sample.prompt for s in sample.sequences)
        self.bytes_per_token = size / rows

    def _request(self, info: TeacherInfo, prompt: Int32, tails: list[Continuation]) -> ScoreRequest:
        self._count += 1
        return ScoreRequest(
            request_id=str(self._count),
            run="bench",
            teacher=info.name,
            tokenizer_hash=info.identity.tokenizer_hash,
            prompt=TokenPrompt(prompt),
            continuations=tuple(tails),
            top_k=TOP_K,
            temperature=1.0,
        )


class StockServer:
    """vLLM's HTTP server: one request for each sequence, all in flight together."""

    def __init__(
        self, stack: ExitStack, folder: Path, model: Path, arguments: Any, *, all_cores: bool
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
        ]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", arguments.dtype]
        command += ["--max-num-batched-tokens", str(STEP_TOKENS), "--max-logprobs", str(TOP_K)]
        command += ["--kv-cache-memory-bytes", str(CACHE_BYTES)]
        command += ["--enforce-eager"] * arguments.eager
        self._url = f"http://127.0.0.1:{port}"
        log = folder / f"http-{port}.log"
        self._model = str(model)
        self.pid = stack.enter_context(
            process(command, self._ready, log, () if all_cores else (BINDING,))
        )
        self._client = stack.enter_context(httpx.Client(timeout=TIMEOUT))
        self.bytes_per_token = 0.0

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def score(self, sample: Sample) -> None:
        body = {
            "model": self._model,
            "prompt": [sequence.tolist() for sequence in sample.sequences],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": TOP_K,
        }
        reply = self._client.post(f"{self._url}/v1/completions", json=body)
        reply.raise_for_status()
        read = [choice["prompt_logprobs"] for choice in reply.json()["choices"]]
        assert [len(rows) for rows in read] == [len(s) for s in sample.sequences]
        self.bytes_per_token = len(reply.content) / sample.tokens


class Offline:
    """vLLM's ``LLM`` in this process, its engine in processes of its own."""

    def __init__(self, model: Path, arguments: Any) -> None:
        from vllm import LLM

        self._llm = LLM(
            str(model),
            dtype=arguments.dtype,
            max_num_batched_tokens=STEP_TOKENS,
            max_logprobs=TOP_K,
            kv_cache_memory_bytes=CACHE_BYTES,
            enforce_eager=arguments.eager,
        )
        self.pid = os.getpid()

    def generate(self, sample: Sample, **parameters: Any) -> None:
        from vllm import SamplingParams, TokensPrompt

        chosen = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **parameters)
        prompts = [TokensPrompt(prompt_token_ids=s.tolist()) for s in sample.sequences]
        found = self._llm.generate(prompts, chosen, use_tqdm=False)
        if "prompt_logprobs" in parameters:
            assert [len(one.prompt_logprobs) for one in found] == [len(s) for s in sample.sequences]

    def prefill(self, sample: Sample) -> None:
        self.generate(sample, skip_reading_prefix_cache=True)

    def flat(self, sample: Sample) -> None:
        self.generate(sample, prompt_logprobs=TOP_K, flat_logprobs=True)

    def objects(self, sample: Sample) -> None:
        self.generate(sample, prompt_logprobs=TOP_K)


def until_idle() -> None:
    """Returns when the other sides' processes have stopped spinning."""
    start = time.perf_counter()
    while psutil.cpu_percent(interval=0.3) > IDLE_PERCENT:
        if time.perf_counter() - start > IDLE_TIMEOUT:
            raise SystemExit("the machine is busy with something else: nothing can be measured")


def peak_mib(pid: int, without: Sequence[int] = ()) -> float:
    """Peak resident memory of a process and those below it, added up."""
    total = 0
    for member in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        if member.pid in without or any(p.pid in without for p in member.parents()):
            continue
        for line in Path(f"/proc/{member.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


def measure(
    kind: str, sides: dict[str, Callable[[Sample], None]], repetitions: int, vocabulary: int
) -> dict[str, list[float]]:
    """Seconds of each side on fresh samples."""

    def once(side: Callable[[Sample], None]) -> Callable[[int], None]:
        return lambda repetition: side(Sample.make(kind, repetition, vocabulary))

    seconds = alternate(
        {name: once(side) for name, side in sides.items()}, repetitions, before=until_idle
    )
    rows = [(name, f"{tokens_per_second(found):.0f}") for name, found in seconds.items()]
    print_table((kind, "tokens/s, median"), rows)
    return seconds


def tokens_per_second(seconds: Sequence[float]) -> float:
    return SEQUENCES * LENGTH / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_vllm", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="SmolLM2-135M, prepared when left out")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="without compiling the model")
    arguments = parser.parse_args()
    model = arguments.model
    if model is None:
        from student_trainer.quickstart.prepare import smollm2_dir

        model = smollm2_dir(print)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = Service(stack, folder, model, arguments)
        stock = StockServer(stack, folder, model, arguments, all_cores=False)
        stock_all = StockServer(stack, folder, model, arguments, all_cores=True)
        offline = Offline(model, arguments)
        vocabulary = service.info.vocabulary_size
        count = arguments.repetitions
        sides: dict[str, Callable[[Sample], None]] = {
            "prefill": offline.prefill,
            "service": service.score,
            "flat": offline.flat,
        }
        others = {"http": stock.score, "http_all": stock_all.score, "objects": offline.objects}
        whole = measure("whole", sides | others, count, vocabulary)
        span = measure("span", sides, count, vocabulary)
        shared = measure("shared", {k: sides[k] for k in ("service", "flat")}, count, vocabulary)
        memory = {
            "service": peak_mib(service.pid),
            "http": peak_mib(stock.pid),
            "offline": peak_mib(offline.pid, (service.pid, stock.pid, stock_all.pid)),
        }
    figures = {
        "service_over_stock_http": median_ratio(whole["http"], whole["service"]),
        "service_over_stock_http_all_cores": median_ratio(whole["http_all"], whole["service"]),
        "service_over_flat": median_ratio(whole["flat"], whole["service"]),
        "service_over_prefill": median_ratio(whole["prefill"], whole["service"]),
        "span_over_flat": median_ratio(span["flat"], span["service"]),
        "span_over_prefill": median_ratio(span["prefill"], span["service"]),
        "shared_over_flat": median_ratio(shared["flat"], shared["service"]),
        "bytes_per_token": service.bytes_per_token,
    }
    speeds = {
        f"{kind}_{side}_tokens_per_second": tokens_per_second(seconds)
        for kind, found in (("whole", whole), ("span", span), ("shared", shared))
        for side, seconds in found.items()
    }
    write_result(
        "vllm" if arguments.dtype == "bfloat16" else f"vllm_{arguments.dtype}",
        figures,
        {
            "dtype": arguments.dtype,
            "eager": arguments.eager,
            "repetitions": count,
            **speeds,
            "http_bytes_per_token": stock.bytes_per_token,
            "peak_mib": memory,
            "seconds": {"whole": whole, "span": span, "shared": shared},
        },
    )


if __name__ == "__main__":
    main()

"""``teacher-server doctor``: checks one by one what ``serve`` with the same settings needs.

Nothing is served: the ports are bound for a moment, and the models are loaded and score a
few tokens twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from teacher_proto.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from teacher_proto.program.checks import Checks
    from teacher_proto.rows import Rows

    from teacher_server.config import ServeConfig
    from teacher_server.settings.teachers import TeacherSettings

# Room for logs and whatever the libraries write to the temporary folder, bytes.
SCRATCH_BYTES = 256 << 20
# How far repeated scores may lie apart, nats, by dtype of the weights (docs/contract.md).
TOLERANCE = {"float32": 5e-5}
HALF_TOLERANCE = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="load no model: leave out limits and repeated scores"
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def run(arguments: argparse.Namespace, settings: Callable[[], ServeConfig]) -> int:
    """Prints the findings; the exit code is that of the first failure."""
    checks = run_checks(settings, load=not arguments.quick)
    sys.stdout.write(checks.render(as_json=arguments.json))
    return checks.exit_code


def run_checks(settings: Callable[[], ServeConfig], *, load: bool) -> Checks:
    from teacher_proto.program.checks import Checks

    found: list[ServeConfig] = []

    def read() -> str:
        from teacher_server.commands.serve import check_has_teacher

        config = settings()
        check_has_teacher(config)
        found.append(config)
        return f"teachers: {', '.join(config.teachers)}"

    checks = Checks()
    checks.run("settings", read)
    if not found:
        return checks
    config = found[0]
    checks.run("clock", lambda: check_clock(config))
    checks.run("credentials", lambda: check_credentials(config))
    checks.run("ports", lambda: check_ports(config))
    checks.run("disk", lambda: check_disk(config))
    for name, teacher in config.teachers.items():
        _check_teacher(checks, name, teacher, config, load=load)
    return checks


def check_clock(config: ServeConfig) -> str:
    """With a clock that is slow, tokens and certificates are valid at the wrong time."""
    now = time.time()
    folders = [Path(t.model) for t in config.teachers.values() if Path(t.model).is_dir()]
    files = [Path(__file__), *(file for folder in folders for file in folder.iterdir())]
    newest = max(files, key=lambda file: file.stat().st_mtime)
    ahead = newest.stat().st_mtime - now
    if ahead > 60:
        raise ConfigurationError(
            f"{newest} was written {ahead:.0f} s in the future by this machine's clock",
            where="clock",
            fix="set the clock (timedatectl set-ntp true)",
        )
    return time.strftime("%Y-%m-%d %H:%M:%S UTC, not behind its files", time.gmtime(now))


def check_credentials(config: ServeConfig) -> str:
    """Credentials and certificates can be used, and suffice for the host."""
    from teacher_server.access.guard import make_guard
    from teacher_server.listen import check_exposure

    credentials, encrypted = config.access.configured, config.tls.cert is not None
    guard = make_guard(config)
    try:
        known = 0 if guard.credentials is None else len(guard.credentials.current().tokens)
    finally:
        guard.close()
    check_exposure(
        config.host,
        credentials=credentials,
        encrypted=encrypted,
        insecure_plaintext=config.insecure_plaintext,
    )
    wire = "TLS" if encrypted else "plain text"
    return f"{f'{known} tokens' if credentials else 'everybody may call'}, {wire}, on {config.host}"


def check_ports(config: ServeConfig) -> str:
    from teacher_server.listen import check_free

    for setting in ("grpc_port", "http_port"):
        check_free(config.host, getattr(config, setting), setting)
    return f"{config.grpc_port} (gRPC) and {config.http_port} (HTTP) are free on {config.host}"


def check_disk(config: ServeConfig) -> str:
    import tempfile

    from teacher_proto.program.checks import check_folder

    if config.ready_file is not None:
        check_folder(config.ready_file.parent, 0, "ready_file")
    return check_folder(Path(tempfile.gettempdir()), SCRATCH_BYTES, "TMPDIR")


def _check_teacher(
    checks: Checks,
    name: str,
    settings: TeacherSettings,
    config: ServeConfig,
    *,
    load: bool,
) -> None:
    own = settings.engine(config.engine)

    def tokenizer() -> str:
        from teacher_server.teachers.tokenizer import load_tokenizer

        loaded = load_tokenizer(settings.model)
        return f"{loaded.size} ids, hash {loaded.hash}"

    def device() -> str:
        import torch
        from teacher_proto.program.checks import check_device

        threads = torch.get_num_threads()
        return check_device(own.device, "engine.device", torch.cuda, threads)

    names = {part: f"{part} of {name}" for part in ("tokenizer", "device", "limits", "repeat")}
    checks.run(names["tokenizer"], tokenizer)
    checks.run(names["device"], device)
    if not load:
        return
    loaded: list[Loaded] = []

    def limits() -> str:
        loaded.append(asyncio.run(load_and_repeat(name, config)))
        return check_limits(loaded[0], config)

    checks.run(names["limits"], limits, (names["tokenizer"], names["device"]))
    checks.run(names["repeat"], lambda: check_repeat(loaded[0]), (names["limits"],))


@dataclass(frozen=True)
class Loaded:
    """A loaded teacher, and how far apart its repeated scores lie, nats."""

    vocabulary_size: int
    max_length: int
    dtype: str
    deterministic: bool
    apart: float


async def load_and_repeat(name: str, config: ServeConfig) -> Loaded:
    """Loads one teacher and scores the same tokens alone and beside others.

    Raises:
        ConfigurationError, EngineError: see ``teachers.load.load_teachers``.
    """
    from teacher_proto.rows import required

    from teacher_server.engines.probe import probe_job
    from teacher_server.teachers.load import load_teachers

    teachers = await load_teachers({name: config.teachers[name]}, config.engine, config.limits)
    engine = teachers.get(name).engine
    try:
        about = engine.description
        job, other = (probe_job(about, start) for start in (1, 5))
        alone = (await engine.score(job)).rows[0]
        beside, *_ = await asyncio.gather(*(engine.score(each) for each in (job, other, other)))
        return Loaded(
            about.vocabulary_size,
            about.max_length,
            about.dtype,
            about.deterministic,
            apart(required(alone, "finite row"), required(beside.rows[0], "finite row")),
        )
    finally:
        await engine.close()


def apart(left: Rows, right: Rows) -> float:
    """Largest difference of two rows' log-probabilities, supports in descending order, nats."""
    from teacher_proto.rows import required

    supports = [required(rows.support, "support").log_probs for rows in (left, right)]
    sampled = [required(rows.sampled, "sampled token").values for rows in (left, right)]
    return max(float(abs(a - b).max()) for a, b in (supports, sampled))


def check_limits(loaded: Loaded, config: ServeConfig) -> str:
    limit = config.limits.max_top_k
    if limit is not None and limit > loaded.vocabulary_size:
        raise ConfigurationError(
            f"{limit} is more than the teacher's {loaded.vocabulary_size} ids",
            where="limits.max_top_k",
            fix="lower it, or leave it out to allow the whole vocabulary",
        )
    longest = min(loaded.max_length, config.limits.max_request_tokens)
    return f"K up to {limit or loaded.vocabulary_size}, sequences up to {longest} tokens"


def check_repeat(loaded: Loaded) -> str:
    tolerance = 0.0 if loaded.deterministic else TOLERANCE.get(loaded.dtype, HALF_TOLERANCE)
    if loaded.apart > tolerance:
        raise EngineError(
            f"the same tokens scored twice differ by {loaded.apart:.2g} nats, "
            f"{tolerance:.2g} are allowed",
            where="engine",
            fix="serve with --deterministic, or with --dtype float32",
            reason="SCORES_DISAGREE",
        )
    return f"the same tokens, alone and beside others: {loaded.apart:.2g} nats apart"

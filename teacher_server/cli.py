"""``teacher-server``: arguments in, exit code out. Heavy imports come after parsing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.program.entrypoint import add_shared_options, run_program

from teacher_server.commands import doctor, inspect, probe, tokenizers, top
from teacher_server.telemetry.stderr import open_missing_streams

if TYPE_CHECKING:
    from teacher_proto.program.settings_show import Resolved

    from teacher_server.config import ServeConfig

ENV_PREFIX = "LSM_TEACHER__"
DEFAULT_TEACHER = "default"

EPILOG = """\
settings: flag > --set > environment (LSM_TEACHER__KEY__KEY) > files, later ones win > default.
exit codes: 0 stopped as asked, 1 failure (an engine died), 2 wrong settings,
130 or 143 work in progress was cut off after --drain-seconds.
"""


def parser() -> argparse.ArgumentParser:
    program = argparse.ArgumentParser(
        prog="teacher-server", description="Scores students' rollouts under teacher models."
    )
    add_shared_options(program)
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve one or more teachers over gRPC and HTTP",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(serve)
    serve.add_argument("--dry-run", action="store_true", help="print the settings and their origin")
    serve.set_defaults(run=run_serve)
    text = "check what `serve` with the same settings needs"
    checks = commands.add_parser("doctor", help=text, description=text)
    add_settings(checks)
    doctor.add_arguments(checks)
    checks.set_defaults(run=run_doctor)
    for name, module, text in (
        ("top", top, "watch a running server: runs, queue, tokens/s"),
        ("inspect", inspect, "see what a running teacher thinks of each token of a text"),
        ("probe", probe, "ask a running server's gRPC health service"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    tokenizers.add_command(commands)
    return program


def add_settings(serve: argparse.ArgumentParser) -> None:
    """Everything that sets a ``ServeConfig``."""
    serve.add_argument("config", nargs="*", type=Path, metavar="CONFIG.toml")
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="set any key, such as limits.max_queue_tokens=2000000",
    )
    teachers = serve.add_argument_group("teachers")
    teachers.add_argument("--model", metavar="PATH", help="serve this model as 'default'")
    teachers.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="serve a model under a name; repeat for several",
    )
    engine = serve.add_argument_group("engine (for every teacher)")
    engine.add_argument("--engine", metavar="NAME", help="transformers or vllm")
    engine.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")
    engine.add_argument("--dtype", metavar="DTYPE", help="auto, float32, bfloat16, float16")
    engine.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="equal requests give equal bytes",
    )
    engine.add_argument("--max-batch-tokens", type=int, metavar="N", help="of one forward pass")
    engine.add_argument("--max-length", type=int, metavar="N", help="prompt plus continuation")
    net = serve.add_argument_group("network")
    net.add_argument("--host", help="address to bind; 127.0.0.1 unless set")
    net.add_argument("--grpc-port", type=int, metavar="PORT", help="0 takes a free one")
    net.add_argument("--http-port", type=int, metavar="PORT", help="0 takes a free one")
    net.add_argument(
        "--insecure-plaintext",
        action="store_true",
        default=None,
        help="allow a host beyond loopback without credentials or encryption",
    )
    access = serve.add_argument_group("access")
    access.add_argument(
        "--credentials-file", metavar="FILE", help="TOML: runs, their tokens and entitlements"
    )
    access.add_argument("--tls-cert", metavar="FILE", help="the server's certificate, PEM")
    access.add_argument("--tls-key", metavar="FILE", help="its key, PEM")
    access.add_argument(
        "--tls-client-ca", metavar="FILE", help="clients must show a certificate of this CA"
    )
    access.add_argument("--audit-file", metavar="FILE", help="gets one line a call")
    program = serve.add_argument_group("program")
    program.add_argument("--ready-file", metavar="FILE", help="JSON, written when ready")
    program.add_argument(
        "--drain-seconds", type=float, metavar="S", help="for work in progress when stopped"
    )
    program.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning, error")


def flag_names(keys: Iterable[str]) -> dict[str, str]:
    """The flags that are not called like their keys."""
    named = {"engine.name": "--engine"}
    for key in keys:
        table, _, name = key.partition(".")
        if table == "teachers":
            named[key] = "--model" if key == f"teachers.{DEFAULT_TEACHER}.model" else "--teacher"
        elif table in ("engine", "access"):
            named.setdefault(key, "--" + name.replace("_", "-"))
    return named


def flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags given, by settings key."""
    from teacher_proto.errors import ConfigurationError
    from teacher_proto.program.settings_keys import dotted

    chosen: dict[str, Any] = {
        "engine.name": arguments.engine,
        "engine.device": arguments.device,
        "engine.dtype": arguments.dtype,
        "engine.deterministic": arguments.deterministic,
        "engine.max_batch_tokens": arguments.max_batch_tokens,
        "engine.max_length": arguments.max_length,
        "host": arguments.host,
        "grpc_port": arguments.grpc_port,
        "http_port": arguments.http_port,
        "insecure_plaintext": arguments.insecure_plaintext,
        "access.credentials_file": arguments.credentials_file,
        "access.audit_file": arguments.audit_file,
        "tls.cert": arguments.tls_cert,
        "tls.key": arguments.tls_key,
        "tls.client_ca": arguments.tls_client_ca,
        "ready_file": arguments.ready_file,
        "drain_seconds": arguments.drain_seconds,
        "log_level": arguments.log_level,
    }
    if arguments.model is not None:
        chosen[dotted(("teachers", DEFAULT_TEACHER, "model"))] = arguments.model
    for item in arguments.teacher:
        name, equals, path = item.partition("=")
        if not equals or not name or not path:
            raise ConfigurationError(
                f"{item!r} is not NAME=PATH",
                where="--teacher",
                fix="write --teacher math=/models/math",
            )
        key = dotted(("teachers", name, "model"))
        if key in chosen:
            raise ConfigurationError(
                f"teacher {name!r} is given twice", where="--teacher", fix="give each name once"
            )
        chosen[key] = path
    return chosen


def resolve(arguments: argparse.Namespace) -> Resolved[ServeConfig]:
    """The settings of ``serve`` and ``doctor``; raises ConfigurationError."""
    from teacher_proto.program.settings import from_environment_only, load_settings

    from teacher_server.config import ServeConfig

    given = flags(arguments)
    resolved = load_settings(
        ServeConfig,
        files=arguments.config,
        env_prefix=ENV_PREFIX,
        overrides=arguments.overrides,
        flags=given,
        flag_names=flag_names(given),
    )
    from_environment_only(resolved, "access.credentials", instead="access.credentials_file")
    return resolved


def run_serve(arguments: argparse.Namespace) -> int:
    resolved = resolve(arguments)
    if arguments.dry_run:
        from teacher_proto.program.settings_show import describe

        sys.stdout.write(describe(resolved) + "\n")
        return 0
    from teacher_server.commands.serve import serve

    return serve(resolved.settings)


def run_doctor(arguments: argparse.Namespace) -> int:
    return doctor.run(arguments, lambda: resolve(arguments).settings)


def run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    open_missing_streams()
    return run_program(run, argv, extra="teacher")

"""Arguments by which the commands that ask a server find it and identify themselves to it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teacher_proto.client.credentials import ClientCredentials, Identification

TOKEN = "LSM_TOKEN"


def add_address_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        help="the gRPC port (127.0.0.1:50051)",
    )


def add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls", action="store_true", help="encrypt, by this machine's authorities")
    parser.add_argument(
        "--ca", type=Path, metavar="PEM", help="encrypt, by these authorities alone"
    )
    parser.add_argument("--cert", type=Path, metavar="PEM", help="our own certificate")
    parser.add_argument("--key", type=Path, metavar="PEM", help="its key")


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"holds the token; or {TOKEN} does"
    )
    parser.add_argument(
        "--insecure-plaintext",
        action="store_true",
        help="send the token unencrypted beyond this machine",
    )


def identification(
    arguments: argparse.Namespace, address: str, *, with_token: bool
) -> Identification:
    """Of these arguments at ``host:port``; raises ConfigurationError when they cannot be used."""
    from teacher_proto.client.credentials import Identification

    return Identification(credentials(arguments, with_token=with_token), address)


def credentials(arguments: argparse.Namespace, *, with_token: bool) -> ClientCredentials:
    """Those of the arguments."""
    from teacher_proto.client.credentials import ClientCredentials

    token_file = arguments.token_file if with_token else None
    return ClientCredentials(
        token="" if not with_token or token_file else os.environ.get(TOKEN, ""),
        token_file=token_file,
        tls=arguments.tls,
        ca=arguments.ca,
        cert=arguments.cert,
        key=arguments.key,
        insecure_plaintext=with_token and arguments.insecure_plaintext,
    )

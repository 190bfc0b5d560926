"""The teacher service: scores students' rollouts under teacher models, over gRPC and HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teacher_proto.program.lazy import lazy_names

if TYPE_CHECKING:
    from teacher_server.commands.serve import serve as serve
    from teacher_server.config import ServeConfig as ServeConfig
    from teacher_server.engines.base import Engine as Engine

_HOMES = {
    "serve": "commands.serve",
    "ServeConfig": "config",
    "Engine": "engines.base",
}

__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)

"""A process that has imported a program and forks one process per run of it.

Each run is a process of its own that can be killed; what is saved is the seconds
its imports take. ``python -m tests.support.zygote PROGRAM MODULE...`` reads one JSON
object a line and answers each with one:

    {"argv", "output", "errors", "faults", "environment", "folder"}
                                            starts PROGRAM's main with these variables added,
                                            in this folder; gives {"pid"}
    {"wait": pid}                           gives {"code"}, negative for a signal
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any, NoReturn


def run(program: str, order: dict[str, Any]) -> NoReturn:
    for path, stream in ((order["output"], 1), (order["errors"], 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environment"])
    if order["folder"]:
        os.chdir(order["folder"])
    code = 1
    try:
        from tests.support.faults import install

        install(order["faults"])
        code = importlib.import_module(f"{program}.cli").main(order["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    program, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                run(program, order)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

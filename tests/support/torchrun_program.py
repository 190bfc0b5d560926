"""``student-trainer`` as torchrun starts it, with faults in the first start of single ranks.

    torchrun ... -m tests.support.torchrun_program FAULTS.json train CONFIG.toml

FAULTS.json is {"RANK": [fault, ...]} (tests.support.faults).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from student_trainer import cli
from tests.support.faults import install


def main() -> int:
    faults = json.loads(Path(sys.argv[1]).read_text())
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        install(faults.get(os.environ["RANK"], []))
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())

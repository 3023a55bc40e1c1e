"""Two processes of one training, forks of a process that has imported what takes seconds: torch, above all.

`python -m tests.two_forks MODULE FOLDER IMPORTED...` calls `main(FOLDER, RANK)` of the module in both.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def launch_two(module: str, folder: Path, *imported: str) -> None:
    """Run both processes of a module, which import what is named before they are two."""
    command = [sys.executable, "-m", "tests.two_forks", module, str(folder), *imported]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr


def main(module: str, folder: Path, *imported: str) -> int:
    """Become both processes, and return whether either has failed."""
    run = importlib.import_module(module).main
    for name in imported:
        importlib.import_module(name)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(folder, 1)
            code = 0
        except BaseException:  # noqa: BLE001 - as an interpreter of its own would end
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    run(folder, 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))

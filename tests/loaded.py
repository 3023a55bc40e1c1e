"""Which modules a program loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def loaded_by(arguments: list[str], cwd: Path) -> set[str]:
    """Run the command line in a fresh interpreter and return the modules it loaded."""
    script = (
        "import sys\nfrom ema_cli.cli import app as cli\n"
        "sys.argv[1:] = sys.argv[1:]\n"
        "try:\n    cli.main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("LOADED ")[2].split())

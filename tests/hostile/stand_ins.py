"""What the programs in hostile pickles call: it leaves a canary, and does nothing else.

In another program these names do not exist, so that a file of these tests does nothing there. What somebody would put
in their place is described, not written: a command of a shell, a process, code as text, a script or a pickle that is
carried out in its turn, or a way to any of them, such as an attribute of an imported module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def create(canary: str, *_: Any) -> None:
    """Leave the canary."""
    Path(canary).touch()


class Creates:
    """Leaves the canary when it is made, or when it gets a state."""

    def __new__(cls, canary: str = "", *_: Any) -> Creates:
        """Leave the canary, if there is a path."""
        if canary:
            create(canary)
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        """Leave the canary that the state names."""
        create(state["x"])

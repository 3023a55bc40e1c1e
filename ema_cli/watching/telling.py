"""What a watch tells while it runs, and what it has done in the end."""

from __future__ import annotations

from collections.abc import Callable

from ema_cli.dataclass import dataclass
from ema_cli.job import Job
from ema_cli.law.time import Time
from ema_cli.writing.target import Target


@dataclass(frozen=True, slots=True)
class Entered:
    """A checkpoint that was folded, or not, with the reason; and how long that took."""

    clock: Time
    name: str
    seconds: float
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what happens: of each checkpoint; of each output; of what is missed; and that nothing happens."""

    entered: Callable[[Entered], None] = lambda entered: None
    published: Callable[[Time, float, Job], None] = lambda clock, seconds, job: None
    told: Callable[[str], None] = lambda text: None
    waiting: Callable[[Time | None], None] = lambda clock: None


@dataclass(frozen=True, slots=True)
class Watched:
    """What was watched.

    Attributes:
        target: the file or folder of the averages.
        clock: that of the newest checkpoint in them; None where there was none yet.
        folded: how many checkpoints are in them.
        entered: those of this time.
        gaps: what was missed, in words.
        job: what was written; None where nothing is there yet.
    """

    target: Target
    clock: Time | None
    folded: int
    entered: tuple[Entered, ...]
    gaps: tuple[str, ...]
    job: Job | None

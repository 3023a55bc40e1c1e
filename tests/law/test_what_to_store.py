"""The table of what to store for which half-lives, row by row."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from ema_cli.law.exponential import HalfLife
from ema_cli.law.profile import Moment, Stored
from ema_cli.law.synthesis import Profiles
from ema_cli.law.time import Time, Unit

PAGE = Path(__file__).parents[2] / "docs/how-to/half-life-afterwards.md"
ROWS = re.findall(r"^\| (\d+) h \| ([\d /]*h[\d /]*) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
SHORT, LENGTH = 100, 64
LONGEST = 1000  # times the shorter half-life


def half_life(times: float) -> HalfLife:
    return HalfLife(Time(float(times * SHORT), Unit.BATCH))


def spans(text: str) -> list[tuple[float, float]]:
    """Return the ranges that a cell says."""
    found = []
    for part in text.split(", "):
        begin, _, end = part.removeprefix("from ").removesuffix(" on").partition(" to ")
        found.append((float(begin.split()[0]), float(end.split()[0]) if end else math.inf))
    return found


def test_the_page_has_rows() -> None:
    """The table is there."""
    assert len(ROWS) == 7


@pytest.mark.slow
@pytest.mark.parametrize(("longer", "every", "near", "enough"), ROWS)
def test_what_is_stored_gives_the_half_lives_of_the_table(longer: str, every: str, near: str, enough: str) -> None:
    """Inside a range the error is not above 1 % or 5 %, a sixth outside of it it is larger."""
    number = re.match(r"(\d*) ?h(?: / (\d+))?", every)
    assert number is not None
    step = int(int(number[1] or 1) * SHORT / int(number[2] or 1))
    stores = range(step, LENGTH * SHORT + 1, step)
    moments = [Moment(1, 1, 0), *(Moment(float(at), float(at), at - 1) for at in stores)]
    kept = (half_life(1), half_life(int(longer)))
    stored = [Stored(None, 0), *(Stored(law, at) for at in range(1, len(moments)) for law in kept)]
    for text, within in ((near, 0.01), (enough, 0.05)):
        inside, outside = [], []
        for low, high in spans(text):
            inside += [low * 1.005, min(high, LONGEST) * 0.995]
            outside += [low * 0.85, *([high * 1.15] if high < math.inf else [])]
        profiles = Profiles(moments, stored, [half_life(each) for each in (*inside, *outside)])
        errors = [profiles.error(half_life(each)) for each in inside]
        assert max(errors) <= within * 1.02, (text, errors)
        assert min(profiles.error(half_life(each)) for each in outside) > within, text

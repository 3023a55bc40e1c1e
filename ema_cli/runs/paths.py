"""Check that something lies at the paths that a user names; say what else a word in the place of a path may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.errors import UsageError, option
from ema_cli.law.time import Time
from ema_cli.storage.alike import hint_at_alike
from ema_cli.storage.location import PATTERN_SIGNS, hint_at_pattern, location, look_anew
from ema_cli.storage.named_paths import check_not_begun
from ema_cli.storage.names import StorePath, check_no_address
from ema_cli.text import plural

_ONE_VALUE = "an option takes one value; give it again for another"


def check_paths(paths: Sequence[Path]) -> None:
    """Check that something lies at each path.

    Raises:
        UsageError: naming the first at which nothing does.
    """
    look_anew(paths)
    for path in paths:
        if not location(path).info(follow=False).exists:
            check_no_address(path)
            check_not_begun(path)
            raise UsageError("does not exist", subject=path, hint=_what_it_may_be(path, paths))


def _what_it_may_be(path: Path, paths: Sequence[Path]) -> str | None:
    """Return what to write instead: the path may be a pattern in quotes, a second value of an option, or mistyped."""
    if isinstance(path, StorePath):
        return hint_at_pattern(path) or hint_at_alike(path)
    if any(sign in path.as_posix() for sign in PATTERN_SIGNS):
        count = _count_fitting(Path(path.anchor), path)
        if count:
            return f"{plural(count, 'path')} fit this pattern: write it without quotes, or name the folder"
        in_run = any(_count_fitting(folder, path) for folder in paths if not path.is_absolute())
        return f"{_ONE_VALUE}: {option('exclude', path.as_posix())}" if in_run else "no path fits this pattern"
    try:
        time = Time.parse(str(path))
    except UsageError:
        return hint_at_alike(path)
    return f"{_ONE_VALUE}: {option('half_life', str(time))}"


def _count_fitting(folder: Path, pattern: Path) -> int:
    return sum(1 for _ in folder.glob(pattern.relative_to(pattern.anchor).as_posix()))

"""Check that something lies at the paths that a user names; where nothing does, say what may be on its way there."""

from __future__ import annotations

from pathlib import Path

from ema_cli.errors import UsageError
from ema_cli.storage.alike import hint_at_alike
from ema_cli.storage.location import hint_at_pattern, location, look_anew
from ema_cli.storage.names import check_no_address


def check_exists(path: Path, *, follow: bool = True) -> None:
    """Check that something lies at a path that a user names.

    Args:
        path: the path.
        follow: whether a link that leads nowhere counts as nothing.

    Raises:
        UsageError: where nothing does.
    """
    look_anew([path])
    if not location(path).info(follow=follow).exists:
        check_no_address(path)
        check_not_begun(path)
        is_link = follow and location(path).info(follow=False).exists
        if is_link:
            raise UsageError("is a link that leads nowhere", subject=path)
        raise UsageError("does not exist", subject=path, hint=hint_at_pattern(path) or hint_at_alike(path))


def check_not_begun(path: Path) -> None:
    """Check that nobody has begun to make what is not at a path.

    Raises:
        UsageError: where parts of an average have; it says which, and what is to be done.
    """
    from ema_cli.storage.begun_parts import not_there_yet  # which only an error needs

    if (said := not_there_yet(path)) is not None:
        raise UsageError(said[0], subject=path, hint=said[1])

"""What a mistyped path may have been meant to be: a name that is like it, where it should be."""

from __future__ import annotations

from os.path import commonprefix
from pathlib import Path

from ema_cli.storage.location import names_around
from ema_cli.storage.names import StorePath

_MOST_NAMES = 10_000  # that are compared: each takes some microseconds
_LEAST_LIKENESS = 0.75  # `dem` and `demo` have 0.86, `step-100` and `step-200` 0.88


def hint_at_alike(path: Path) -> str | None:
    """Return a hint at what lies beside a path that does not exist, under a name that is like its own; else None.

    Where the folder around it does not exist either, that one is compared. It takes a request for each of these in a
    store, of which nothing is known yet.
    """
    for part in (path, *path.parents):
        if not part.name or (isinstance(part, StorePath) and not part.key):
            return None
        names = names_around(part.parent)
        if part.name in names:
            return None  # an empty folder
        if not part.name.strip():  # a space after the last slash
            return f"did you mean {part.parent}?" if names and part.parent != Path() else None
        if names:
            from difflib import get_close_matches  # which few errors need

            # First those that begin alike: by letters, of which names are made.
            names.sort(key=lambda name: (-len(commonprefix((name, part.name))), name))  # noqa: RUF071
            alike = get_close_matches(part.name, names[:_MOST_NAMES], cutoff=_LEAST_LIKENESS)
            meant = [str(part.with_name(name) / path.relative_to(part)) for name in alike]
            return f"did you mean {' or '.join(meant)}?" if meant else None
    return None

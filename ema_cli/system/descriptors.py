"""How many files and connections this process may have open at once."""

from __future__ import annotations

import resource


def raise_limit(wanted: int) -> None:
    """Allow so many open files and connections, as far as the system lets this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))

"""Tell what lies in the folder of an average from what is no part of it. No numpy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.release.published import Published, is_allowed, is_no_part
from ema_cli.storage.location import location


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies in the folder of an average, by names relative to it.

    Attributes:
        present: what belongs to the average, or should not be there: files, links and empty folders. A folder's name
            ends in a slash.
        no_part: what is there, and is no part of the average: of git, the Hub, a signer, and what the user allowed.
    """

    present: frozenset[str]
    no_part: tuple[str, ...] = ()


def look_around(published: Published, listed: Collection[str], allowed: Sequence[str]) -> Surroundings:
    """Return what lies in the folder of an average; of one file only that file and what belongs to it.

    Args:
        published: the paths of the average.
        listed: the names that the manifest or the checksums list: these belong to the average, whatever they are.
        allowed: patterns of names that may be there, too.
    """
    if not published.is_folder:
        beside = (published.path, published.manifest, published.sums, published.signature)
        names = [path.name for path in beside if location(path).info(follow=False).exists]
        signature = [name for name in names if name == published.signature.name and name not in listed]
        return Surroundings(frozenset(names).difference(signature), tuple(signature))
    present, no_part = set(), []
    for name in _names(published.path):
        if name not in listed and (is_no_part(name) or is_allowed(name, allowed)):
            no_part.append(name)
        else:
            present.add(name)
    return Surroundings(frozenset(present), tuple(sorted(no_part)))


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of files, links and empty folders below a folder; what is no part of an average is not entered.

    Links are not entered.
    """
    waiting = [(folder, "")]
    while waiting:
        at, begin = waiting.pop()
        entries = location(at).entries()
        if not entries and begin:
            yield begin
        for entry in entries:
            name = f"{begin}{entry.name}"
            if entry.is_folder and not entry.is_link and not is_no_part(name):
                waiting.append((entry.path, f"{name}/"))
            else:
                yield name

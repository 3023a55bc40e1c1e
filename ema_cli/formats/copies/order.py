"""Whether averages come in the order in which copies of files take them, as a store needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from ema_cli.formats.copies.copied_file import CopiedFile
from ema_cli.formats.copies.stored import StoredPiece


def files_at_once(files: Sequence[CopiedFile], pieces: Mapping[str, Sequence[StoredPiece]]) -> int:
    """Return how many files are written at the same time, where all bytes of each come in order; else 0.

    Args:
        files: the files; their tensors are averaged in the order of their tables.
        pieces: where each averaged tensor goes. Each file of ranks has a piece of each tensor.
    """
    if not all(file.is_in_order for file in files):
        return 0
    ends = dict.fromkeys((file.source.path for file in files), 0)
    first, last = dict[Path, int](), dict[Path, int]()
    names = (name for file in files for name in file.table.specs)
    for number, name in enumerate(names):
        own = [piece for piece in pieces.get(name, ()) if piece.spec.count]
        if len({piece.file.path for piece in own}) < len(own):
            return 0  # two parts of one tensor in one file may alternate
        for piece in own:
            path = piece.file.path
            if not piece.in_order or piece.base < ends[path]:
                return 0
            ends[path] = piece.base + piece.spec.nbytes
            first.setdefault(path, number)
            last[path] = number
    changes = Counter(first.values())
    changes.subtract(number + 1 for number in last.values())
    return max(1, *accumulate((changes[number] for number in sorted(changes)), initial=0))

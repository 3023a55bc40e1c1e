"""Read the `.metadata` of torch.distributed.checkpoint. No torch here.

It is a pickle of a few dataclasses. torch loads it with `pickle.load`, which runs whatever the file names. Here each
stays an inert placeholder, see `content.py`.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.before import Before
from ema_cli.formats.boxes import Damaged
from ema_cli.formats.dcp.content import KNOWN, OF_TENSORS, Metadata, parse
from ema_cli.formats.dcp.layouts import Layouts
from ema_cli.formats.pickles.beginnings import Beginning, unpickle_beginning
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.pickles.values import Inert, PickleError
from ema_cli.storage.source import ByteSource, HeldBytes, InputFile

_MAX_BYTES = 128 << 20  # of the file; for each piece there are some 150
_OBJECT = b"\x81\x94}\x94("  # how a pickle begins to make an object with attributes; for a piece there are three
_MAX_OBJECTS = 1_200_000
_OWN = b"\x8c\x0cstorage_meta"  # where the identity of each save begins, after all that is said of the tensors
_LAST = b"ub."  # how a pickle ends that has nothing of its own
_MAX_INSTRUCTIONS = 40_000_000  # of the pickle; for each object there are some 23


def read_metadata(file: InputFile, before: Before | None = None) -> Metadata:
    """Read the `.metadata` file of a folder.

    Args:
        file: the file.
        before: what the files of the run were that were read before. Folders of one run mostly have equal ones.

    Raises:
        CheckpointError: for what is no such file, leads out of the folder, or is compressed or encrypted.
    """
    if file.size > _MAX_BYTES:
        raise CheckpointError(f"of {file.size} bytes; at most {_MAX_BYTES} are read", subject=file.path)
    data = file.read(0, file.size)
    own = data.rfind(_OWN)
    end = own if own > 0 else max(len(data) - len(_LAST), 0)
    held = HeldBytes(file.path, data)
    key = end, blake2b(memoryview(data)[:end]).digest()
    known = before.get(_Known, key) if before is not None else None
    again = known.of(file, held) if known is not None else None
    if again is not None:
        return again
    objects = data.count(_OBJECT)
    if objects > _MAX_OBJECTS:
        raise CheckpointError(f"describes {objects} things; at most {_MAX_OBJECTS} are read", subject=file.path)
    try:
        metadata, beginning = _read(file, held, end)
    except (PickleError, Damaged) as error:
        raise CheckpointError(f"cannot be read: {error}", subject=file.path) from error
    if before is not None and beginning is not None:
        known = _Known(metadata, beginning)
        if known.of(file, held) is not None:  # its own end changes nothing
            before.keep(key, known, file.size)
    return metadata


@dataclass(frozen=True, slots=True)
class _Known:
    """What a file was that was read before, and how it began: all but what each save has of its own, at its end."""

    metadata: Metadata
    beginning: Beginning

    def of(self, file: InputFile, data: ByteSource) -> Metadata | None:
        """Return what a file is that begins as this one did; None where its end tells something else of the tensors.

        Args:
            file: the file.
            data: its bytes.
        """
        try:
            root = self.beginning.go_on(data)
        except PickleError:
            return None
        state = root.state if isinstance(root, Inert) else None
        values = self.beginning.values
        taken = dict(zip(values[::2], values[1::2], strict=True))
        if not (isinstance(state, dict) and state.keys() <= {*KNOWN}):
            return None
        is_same = all(state.get(name) is taken.get(name) for name in OF_TENSORS)
        return replace(self.metadata, file=file, _layouts=Layouts()) if is_same else None


def _read(file: InputFile, data: ByteSource, end: int) -> tuple[Metadata, Beginning | None]:
    """Return what a file says; and its beginning up to byte `end`, where others can be read by that."""
    try:
        root, beginning = unpickle_beginning(data, end, _MAX_INSTRUCTIONS)
        return parse(file, root), beginning
    except (PickleError, Damaged):
        # The byte may lie within an instruction, or objects be used in a way in which torch uses none. Then what the
        # instructions say counts, one by one.
        return parse(file, unpickle(data, most=_MAX_INSTRUCTIONS)[0]), None

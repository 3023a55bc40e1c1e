"""What one rank's file says of a model, without where its storages lie: the same in all checkpoints of a run."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Mapping
from dataclasses import field

from ema_cli.checkpoint import Progress, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.formats.before import Before
from ema_cli.formats.boxes import Shape
from ema_cli.formats.torch_save.archive import Archive, Span
from ema_cli.formats.torch_save.file import is_zip
from ema_cli.storage.source import InputFile

_PICKLE, _STORAGES = "data.pkl", "data/"  # in an archive of torch's
_MOST_BYTES = 16 << 20  # of a pickle that is compared
_PART_BYTES, _NUMBER_BYTES = 400, 8  # that a part takes in memory, about, and each of its numbers


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor in a rank's file.

    Attributes:
        name: of the tensor in the model.
        spec: of the whole.
        is_cut: whether ranks say of it that they share it.
        key: of its storage.
        stored: the size of the storage.
        boxes: for each box its first byte in the storage, its offsets and its lengths.
    """

    name: str
    spec: TensorSpec
    is_cut: bool
    key: str
    stored: int
    boxes: array[int]


@dataclass(frozen=True, slots=True)
class RankTable:
    """What a file says.

    Attributes:
        names: of the tensors of the model, also those of which the rank has no part.
        parts: what the rank has.
        ranks: how many ranks there are, as far as the file says it.
        progress: the clocks.
        shapes: those of tensors of which the parts are runs of elements, in C order: their specs have one dimension.
    """

    names: tuple[str, ...]
    parts: tuple[Part, ...]
    ranks: int
    progress: Progress
    shapes: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    """A table, and the sha256 of the pickle that it was made of."""

    digest: bytes
    table: RankTable


class Description:
    """The pickle of a rank's file, as bytes: where they are those of a file before, its table is that one's.

    Args:
        file: the file.
        key: what tells the file from the others of its checkpoint, and the options with which it is read.
        before: what was read before.
    """

    def __init__(self, file: InputFile, key: Hashable, before: Before) -> None:
        self._key, self._before = key, before
        archive = Archive(file, before) if is_zip(file) else None
        self._archive = archive if archive is not None and (archive.size(_PICKLE) or 0) <= _MOST_BYTES else None
        self._digest = b"" if self._archive is None else hashlib.sha256(self._archive.read(_PICKLE)).digest()

    def known(self) -> tuple[RankTable, Mapping[str, Span]] | None:
        """Return the table of an equal description, and where the storages lie; None where there is none."""
        known = self._before.get(_Known, self._key)
        if self._archive is None or known is None or known.digest != self._digest:
            return None
        spans = self._archive.spans(dict.fromkeys(part.key for part in known.table.parts), _STORAGES)
        if any(spans.get(part.key, (0, -1))[1] != part.stored for part in known.table.parts):
            return None  # whoever reads it anew says why
        return known.table, spans

    def keep(self, table: RankTable) -> None:
        """Keep the table for the files of further checkpoints."""
        if self._archive is not None:
            size = sum(_PART_BYTES + _NUMBER_BYTES * len(part.boxes) for part in table.parts)
            self._before.keep(self._key, _Known(self._digest, table), size)

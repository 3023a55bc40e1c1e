"""Tensors of a file of torch's, read by range, contiguous or not. No torch here."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence

from ema_cli.checkpoint import Run, StoredRecord, Tensors, TensorSpec, shared
from ema_cli.dataclass import dataclass
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.storage.source import ByteSource


@dataclass(frozen=True, slots=True)
class View:
    """How a tensor differs from its bytes in C order: strides in elements (None: not), torch's lazy bits."""

    strides: tuple[int, ...] | None
    conjugate: bool
    negative: bool

    @classmethod
    def of(cls, ref: TensorRef) -> View:
        """Return the view that a description gives."""
        strides = None if is_contiguous(ref.shape, ref.strides) else ref.strides
        return cls(strides, ref.conjugate, ref.negative)


IN_ORDER = View(None, conjugate=False, negative=False)


@dataclass(slots=True)
class TorchTensors:
    """Tensors in a file of torch's, contiguous or not.

    Attributes:
        specs: dtype and shape of each tensor.
        numbers: the index in `offsets` of each tensor.
        offsets: the byte of the file at which a tensor's first element lies.
        views: the views of tensors that do not simply lie in order.
        source: the file.
    """

    specs: Mapping[str, TensorSpec]
    numbers: Mapping[str, int]
    offsets: array[int]
    views: Mapping[str, View]
    source: ByteSource

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, TorchTensors):
            self.numbers = shared(self.numbers, other.numbers)

    def place(self, name: str) -> Hashable:
        """Return offset, view and spec: tied tensors have them equal."""
        return self.offsets[self.numbers[name]], self.views.get(name, IN_ORDER), self.specs[name]

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file and the byte in it where tensor `name` begins; None for a view that needs more than that."""
        return None if name in self.views else (self.source, self.offsets[self.numbers[name]])

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return where bytes of tensor `name` lie; None for a view that needs more than that."""
        return None if name in self.views else ((self.source, self.offsets[self.numbers[name]] + start, size),)

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies, of a view its first byte and so much more."""
        return self.offsets[self.numbers[name]] + start

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""
        return self.source.path.name

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the records of the storages; none in a file of the old format, which has no checksums."""
        from ema_cli.formats.torch_save.zip_records import records_at

        names = [name for name, spec in self.specs.items() if spec.count]
        return records_at(self.source, {name: self.offsets[self.numbers[name]] for name in names})

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`, gathering it where it is strided."""
        offset, view, spec = self.offsets[self.numbers[name]], self.views.get(name, IN_ORDER), self.specs[name]
        if view.strides is None:
            self.source.read_into(offset + start, out)
        else:
            from ema_cli.formats.torch_save.strided import gather

            gather(self.source, offset, spec, view.strides, start, out)
        if view.conjugate or view.negative:
            from ema_cli.formats.torch_save.strided import apply_lazy_bits

            apply_lazy_bits(spec.dtype, out, conjugate=view.conjugate, negative=view.negative)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements lie in C order without gaps (as torch's is_contiguous)."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return 0 in shape
        expected *= length
    return True

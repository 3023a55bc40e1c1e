"""A fold without A and B of an adapter: what of these is written is made otherwise. No numpy."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.dataclass import dataclass
from ema_cli.folding.sink import Sink, TensorRange
from ema_cli.formats.adapters.pairs import Pair, names_of


@dataclass(frozen=True, slots=True)
class WithoutPairs:
    """Takes an average of A and B, as all else is averaged, and leaves those out; a `Sink`."""

    sink: Sink
    names: frozenset[str]

    @classmethod
    def of(cls, sink: Sink, pairs: Sequence[Pair]) -> WithoutPairs:
        """Return a sink that leaves out A and B of these pairs."""
        return cls(sink, frozenset(names_of(pairs)))

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Take what is of no pair."""
        position = 0
        for part in ranges:
            if part.name not in self.names:
                self.sink.write([part], data[position : position + part.size])
            position += part.size

    def give_up(self) -> None:
        """End soon what is still written."""
        self.sink.give_up()

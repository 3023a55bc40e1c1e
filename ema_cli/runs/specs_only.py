"""Tensors of checkpoints that may be gone: what is known of them, for plans and layouts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

from ema_cli.checkpoint import Run, StoredRecord, Tensors, TensorSpec
from ema_cli.errors import CheckpointError
from ema_cli.storage.source import ByteSource


class SpecsOnly:
    """Specs without tensors; `Tensors`."""

    def __init__(
        self, specs: Mapping[str, TensorSpec], shards: Mapping[str, str], ties: Mapping[str, str] | None = None
    ) -> None:
        """Take the specs; where known, the file that held each tensor, and the names tied to others, each with one."""
        self.specs = specs
        self._shards = shards
        self._ties = ties or {}

    def share(self, other: Tensors) -> None:
        """Do nothing: all have one table."""

    def place(self, name: str) -> Hashable:
        """Return the name that a tensor is tied to, else its own."""
        return self._ties.get(name, name)

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return None: it is in no file."""
        return None

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return None: they are in no file."""
        return None

    def offset(self, name: str, start: int) -> int:
        """Return 0: nobody knows."""
        return 0

    def shard(self, name: str) -> str:
        """Return the name of the file that held a tensor."""
        return self._shards.get(name, "")

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield nothing."""
        return iter(())

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Refuse it."""
        raise CheckpointError(f"'{name}' is not read: the checkpoint may be gone")

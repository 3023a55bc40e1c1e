"""Compare the bytes around the tensors of published files with those that ema-cli writes around such tensors.

What is there decides how a file loads: a header, a pickle, the directory of an archive. No numpy.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from itertools import chain
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, Unreadable, at_terminal
from ema_cli.formats.copies.description import CannotCut
from ema_cli.formats.copies.lightning import STATE_DICT, lightning_facts
from ema_cli.formats.dcp.writer import lay_out_shard, shard_metadata
from ema_cli.formats.mark import METADATA_KEY, parse_mark
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.safetensors.writer import SafetensorsOutput
from ema_cli.formats.torch_save.writer import Part, lay_out_checkpoint, lay_out_torch_file
from ema_cli.formats.trainers.folders import DCP_METADATA
from ema_cli.release.snapshot import Snapshot
from ema_cli.storage.source import InputFile
from ema_cli.writing.outputs import Output

_MORE = "holds something around its tensors that ema-cli does not write"
_STEP = 1 << 20  # bytes that are read at once
_CHECKSUM_AT = 4  # in the bytes behind a tensor, which hold its checksum


def frame_differences(snapshot: Snapshot, output: Output, *, same_version: bool) -> list[str]:
    """Return a problem for each tensor file whose bytes around the tensors differ from the expected ones.

    The tensors themselves must have been compared before.

    Args:
        snapshot: the published average.
        output: the output that averaging again would write.
        same_version: whether this version of ema-cli made it. Another one may order and space the text in a header of
            safetensors otherwise; then what the text says is compared, and nothing else can be there.
    """
    problems = []
    for file in output.files:
        published = snapshot.files[file.name]
        sink = _ComparingSink(published)
        if isinstance(file, SafetensorsOutput) and not same_version:
            tensors = snapshot.opened[file.name].tensors
            there = tensors.metadata if isinstance(tensors, SafetensorsTensors) else {}
            is_same = _parsed(there) == _parsed(json.loads(b"{%b}" % file.metadata)["__metadata__"])
        else:
            sink.write(0, file.header)
            if not sink.different:
                file.finish(sink)
            is_same = not sink.different and file.size == published.size
        if not is_same:
            fact = "holds the tensors that the checkpoints give, but something else around them"
            problems.append(f"{published.path}: {fact}, {sink.where}")
    return problems


def _parsed(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the metadata of a header with our mark as data, as its text may be spaced in several ways."""
    return {**metadata, METADATA_KEY: parse_mark(metadata.get(METADATA_KEY, ""))}


def torch_differences(file: InputFile, checkpoint: Checkpoint, *, is_lightning: bool) -> Iterator[str]:
    """Yield the difference between a file of torch's and what ema-cli writes around the tensors and mark in it.

    So its pickle names nothing but tensors, in a checkpoint of Lightning's plain values, too, and no second description
    is hidden in the archive. The checksums of the tensors are taken as they stand there.
    """
    sink = _ComparingSink(file)
    try:
        mark = json.dumps(checkpoint.mark or {}, separators=(",", ":"))
        name, specs = checkpoint.path.name, checkpoint.tensors.specs
        if is_lightning:
            expected = lay_out_checkpoint(name, specs, mark, STATE_DICT, lightning_facts(file).entries)
        else:
            expected = lay_out_torch_file(name, specs, mark)
    except Unreadable:
        raise
    except CannotCut as error:
        yield f"is no checkpoint that ema-cli writes: {error}"
        return
    except EmaError as error:
        yield error.message(at_terminal, known=checkpoint.path.name)
        return
    header: Part = 0, expected.header
    sink.compare(chain([header], expected.frame(sink.checksum_there)))
    if sink.different or expected.size != file.size:
        yield f"{_MORE}, {sink.where}"


def dcp_differences(files: Mapping[str, InputFile], checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield each file of a folder of torch.distributed.checkpoint's that differs from what ema-cli writes around its
    tensors, and how: so `.metadata`, which torch runs, names nothing but what describes them.
    """
    shard = lay_out_shard(checkpoint.tensors.specs)
    text = shard_metadata(shard)
    for name, size, parts in ((DCP_METADATA, len(text), [(0, text)]), (shard.name, shard.size, None)):
        if name not in files:
            yield name, "is missing"
            continue
        sink = _ComparingSink(files[name])
        sink.compare(shard.frame(sink.checksum_there) if parts is None else parts)
        if sink.different or size != files[name].size:
            yield name, f"{_MORE}, {sink.where}"


@dataclass(slots=True)
class _ComparingSink:
    """An output that compares instead of writing: `different` lists the offsets at which the file has other bytes."""

    file: InputFile
    path: Path = field(init=False)
    different: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.file.path

    @property
    def where(self) -> str:
        """Return in words where the first difference is."""
        return f"from byte {self.different[0]} on" if self.different else "in its metadata or at its end"

    def read(self, offset: int, size: int) -> bytes:
        return self.file.read(offset, max(0, min(size, self.file.size - offset)))

    def checksum_there(self, begin: int, size: int) -> int:
        """Return the checksum that the file has behind a tensor."""
        at = begin + size + _CHECKSUM_AT
        return int(struct.unpack("<L", self.read(at, 4).ljust(4, b"\0"))[0]) if size else 0

    def compare(self, parts: Iterable[Part]) -> None:
        """Compare parts, each with its offset, up to the first that differs."""
        for offset, data in parts:
            self.write(offset, data)
            if self.different:
                break

    def write(self, offset: int, data: bytes | memoryview) -> None:
        whole = memoryview(data)
        for at in range(0, len(whole), _STEP):
            part = whole[at : at + _STEP]
            if self.read(offset + at, len(part)) != part:
                self.different.append(offset)
                break

"""Where in the files of a published average each tensor lies, to look at its numbers while a file is read. No numpy."""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.formats.dcp.writer import lay_out_shard
from ema_cli.release.published import Published
from ema_cli.storage.source import InputFile

Positions = Mapping[str, tuple[int, TensorSpec]]
"""The first byte of each tensor in a file, and its spec, by name."""


def positions_in_files(published: Published, opened: Mapping[str, Checkpoint]) -> dict[str, Positions]:
    """Return for each file the first byte and the spec of each tensor that lies in it by itself and in order."""
    positions: dict[str, dict[str, tuple[int, TensorSpec]]] = {}
    for checkpoint in opened.values():
        tensors, ends = checkpoint.tensors, dict[str, int]()
        located = [(*place, name) for name in tensors.specs if (place := tensors.locate(name)) is not None]
        for source, begin, name in sorted(located, key=lambda row: (row[0].path, row[1])):
            file, spec = source.path.relative_to(published.folder).as_posix(), tensors.specs[name]
            folder = file[: file.rfind("/") + 1]
            if begin >= ends.get(file, 0) and name.startswith(folder):
                positions.setdefault(file, {})[name.removeprefix(folder)] = (begin, spec)
                ends[file] = begin + spec.nbytes
    return dict(positions)


def positions_in_shard(files: Mapping[str, InputFile], opened: Mapping[str, Checkpoint]) -> dict[str, Positions]:
    """Return first byte and spec of each tensor of a folder of torch.distributed.checkpoint's, where we write them.

    Where the shard is not of that size, it is another's, and a problem anyhow.
    """
    shards = [lay_out_shard(checkpoint.tensors.specs) for checkpoint in opened.values()]
    return {
        shard.name: {name: (begin, shard.table.specs[name]) for name, begin in shard.table.begins.items()}
        for shard in shards
        if shard.name in files and files[shard.name].size == shard.size
    }

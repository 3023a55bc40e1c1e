"""A `.metadata` of many pieces, which are read by a template: it says what it says when it is read one by one."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.dcp import metadata as module
from ema_cli.formats.dcp.metadata import read_metadata
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import PickleError
from ema_cli.storage.location import location
from tests.formats.dcp_folders import Box, Pieces
from tests.formats.reading import read_all


def rows(count: int, width: int = 3) -> list[Box]:
    """Return the pieces of a matrix, one row each."""
    return [((row, 0), (1, width)) for row in range(count)]


def saved(folder: Path, ranks: int = 6) -> Path:
    """Return a folder with two matrices and a vector in as many pieces, a scalar and an item."""
    pieces = Pieces(folder)
    numbers = torch.arange(3.0 * ranks).reshape(ranks, 3)
    pieces.add("model.a", numbers, rows(ranks))
    pieces.add("model.b", numbers + 100, [((0, side), (ranks, 1)) for side in range(3)])
    pieces.add("model.c", numbers[:, 0].clone(), [((row,), (1,)) for row in range(ranks)])
    pieces.add("model.d", numbers - 100, rows(ranks))
    pieces.add("model.count", torch.tensor(7))
    pieces.add_item("step", 3)
    # As ranks send it to the first: no object of one rank's is that of another.
    metadata = pickle.loads(pickle.dumps(pieces.metadata))
    metadata.storage_data = dict(pickle.loads(pickle.dumps(list(metadata.storage_data.items()))))
    pieces.metadata = metadata
    return pieces.write()


def said(folder: Path) -> Any:
    """Return all that `.metadata` says, or that it is refused."""
    try:
        found = read_metadata(location(folder / ".metadata").open())
        tensors = {name: found.tensor(name) for name in found.tensors}
    except EmaError:
        return "refused"
    described = {name: (each.spec, each.pieces, list(each.records)) for name, each in tensors.items()}
    return described, found.items, found.paths, found.more


def said_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the same, read instruction by instruction."""

    def refuse(*args: object) -> None:
        raise PickleError

    with monkeypatch.context() as patched:
        patched.setattr(module, "unpickle_beginning", refuse)
        return said(folder)


def test_pieces_are_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors in rows, in columns and whole read as they were saved."""
    folder = saved(tmp_path / "step-1", 40)
    tensors = open_checkpoint(folder, ReadOptions(key="model")).tensors
    expected = torch.arange(120.0).reshape(40, 3)
    for name, values in (("a", expected), ("b", expected + 100), ("c", expected[:, 0]), ("d", expected - 100)):
        assert read_all(tensors)[name] == values.contiguous().numpy().tobytes()
    assert said(folder) == said_one_by_one(folder, monkeypatch) != "refused"


def test_changed_metadata_say_the_same_read_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """With bytes changed, left out or repeated: what is read, and what is refused, does not depend on templates."""
    folder = saved(tmp_path / "step-1")
    good = (folder / ".metadata").read_bytes()
    drawn, read = random.Random(5), 0
    for _ in range(20_000 if full else 400):
        begin = drawn.randrange(len(good))
        end = begin + drawn.choice((1, 1, 1, 2, 9, 40))
        part = drawn.choice((b"", bytes([drawn.randrange(256)]), 2 * good[begin:end]))
        (folder / ".metadata").write_bytes(good[:begin] + part + good[end:])
        found = said(folder)
        assert found == said_one_by_one(folder, monkeypatch), (begin, end, part)
        read += found != "refused"
    assert read > 5


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ""])
def test_a_file_outside_the_folder_is_refused_among_many(name: str, tmp_path: Path) -> None:
    """The name of the file of one piece of many, read by a template as they are."""
    pieces = Pieces(tmp_path)
    pieces.add("w", torch.ones(40, 3), rows(40))
    list(pieces.metadata.storage_data.values())[30].relative_path = name
    assert said(pieces.write()) == "refused"


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("number", [-1, None, 1 << 62, 1.5, "7"])
def test_a_place_that_is_none_is_refused_among_many(field: str, number: object, tmp_path: Path) -> None:
    """Numbers that cannot be those of bytes in a file."""
    pieces = Pieces(tmp_path)
    pieces.add("w", torch.ones(40, 3), rows(40))
    setattr(list(pieces.metadata.storage_data.values())[30], field, number)
    assert said(pieces.write()) == "refused"


def test_folders_of_one_run_are_read_once_however_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of the first is kept for the next, though it takes more than all that is kept otherwise."""
    monkeypatch.setattr("ema_cli.formats.before._MOST_BYTES", 1000)
    folders = [saved(tmp_path / f"step-{step}") for step in range(3)]
    options, opened = ReadOptions(key="model"), []
    for folder in folders:
        opened.append(open_checkpoint(folder, options).tensors)
        monkeypatch.setattr(module, "unpickle_beginning", None)
    assert opened[0].pieces is opened[1].pieces is opened[2].pieces

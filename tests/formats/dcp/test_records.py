"""Records of a DCP shard: what was understood once is recognised, and nothing else is."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch

from ema_cli.errors import EmaError
from ema_cli.formats.dcp import records
from ema_cli.formats.dcp.records import RecordReader
from ema_cli.storage.location import location
from ema_cli.storage.source import FileRegion


def record_of(value: object) -> bytes:
    """Return the bytes that torch.distributed.checkpoint stores for one value."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def region(folder: Path, data: bytes, name: str = "shard", before: int = 0) -> FileRegion:
    """Return a record in a file, `before` bytes from its beginning."""
    (folder / name).write_bytes(bytes(before) + data)
    return FileRegion(location(folder / name).open(), before, len(data))


def outcome(reader: RecordReader, record: FileRegion) -> Any:
    """Return the tensor's spec and bytes, or the error in words."""
    try:
        weights = reader.open("w", record)
        if weights is None:
            return None
        spec = weights.specs["w"]
        out = bytearray(spec.nbytes)
        weights.read_into("w", 0, memoryview(out))
    except EmaError as error:
        return str(error)
    return spec, bytes(out)


def test_records_that_differ_in_their_tensors_bytes_are_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five records of one shape and type: one is opened in full, and each gives its own values."""
    opened = []
    open_zip = records.open_zip
    monkeypatch.setattr(records, "open_zip", lambda *args: opened.append(args) or open_zip(*args))
    reader = RecordReader()
    for number in range(5):
        tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4) + number
        found = outcome(reader, region(tmp_path, record_of(tensor), f"shard-{number}", before=100 * number))
        assert found[1] == tensor.numpy().tobytes()
        assert found[0].shape == (3, 4)
    assert len(opened) == 1


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(4, 3),
        torch.zeros(3, 4, dtype=torch.int32),
        torch.zeros(4, 3).T,
        torch.zeros(2, 3, 4)[1],
        {"not": "a tensor"},
    ],
    ids=["shape", "type", "strides", "offset", "no tensor"],
)
def test_a_record_that_says_something_else_is_opened_itself(other: object, tmp_path: Path) -> None:
    """A record that describes another tensor, or none, is read as what it is, whatever came before it."""
    reader = RecordReader()
    outcome(reader, region(tmp_path, record_of(torch.ones(3, 4)), "before"))
    record = region(tmp_path, record_of(other))
    assert outcome(reader, record) == outcome(RecordReader(), record)


@pytest.mark.slow
def test_no_byte_outside_the_tensor_can_be_changed_unseen(tmp_path: Path) -> None:
    """With any one byte of a record changed, a reader that knows the record as it was finds what a new one finds."""
    data = record_of(torch.arange(6, dtype=torch.float32))
    reader = RecordReader()
    assert outcome(reader, region(tmp_path, data))[1] == torch.arange(6, dtype=torch.float32).numpy().tobytes()
    errors = 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x41
        record = region(tmp_path, bytes(changed), f"shard-{at}")
        found, expected = outcome(RecordReader(dict(reader._known)), record), outcome(RecordReader(), record)
        assert found == expected, at
        errors += isinstance(expected, str)
    assert errors > 100


def test_few_frames_are_remembered(tmp_path: Path) -> None:
    """Two hundred kinds of records leave few frames, and one that is hardly smaller than a file leaves none."""

    def remembered() -> int:
        return sum(len(frames.all) for frames in reader._known.values())

    reader = RecordReader()
    for number in range(200):
        assert outcome(reader, region(tmp_path, record_of(torch.ones(number)), f"shard-{number}"))[0].count == number
        assert remembered() <= 64
    before = remembered()
    # A comment at the end of the archive makes a reader look through all of its last 64 KiB.
    commented = bytearray(record_of(torch.ones(2)))
    commented[-2:] = (40_000).to_bytes(2, "little")
    assert outcome(reader, region(tmp_path, bytes(commented) + b"-" * 40_000))[1] == torch.ones(2).numpy().tobytes()
    assert remembered() <= before


def test_threads_that_parse_one_kind_of_record_at_once_leave_one_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads that each parsed a record of one kind before any of them remembered it keep its frame once."""
    all_parse, open_zip = Barrier(4), records.open_zip

    def opened_together(*args: Any) -> Any:
        all_parse.wait(timeout=60)
        return open_zip(*args)

    monkeypatch.setattr(records, "open_zip", opened_together)
    reader, shard = RecordReader(), region(tmp_path, record_of(torch.ones(3, 4)))
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: outcome(reader, shard), range(4)))) == 1
    assert [len(frames.all) for frames in reader._known.values()] == [1]


def test_a_frame_is_remembered_while_others_are_counted(tmp_path: Path) -> None:
    """Where another thread meets a new kind of record while the known frames are counted, both are remembered."""
    shards = [region(tmp_path, record_of(torch.ones(count)), f"shard-{count}") for count in (10, 100, 1000)]
    others = list[Thread]()

    class Known(dict[int, Any]):
        def values(self) -> Any:
            for frames in super().values():
                if not others:
                    others.append(Thread(target=outcome, args=(reader, shards[2])))
                    others[0].start()
                    others[0].join(timeout=0.1)  # it waits for its turn
                yield frames

    reader = RecordReader(Known())
    for shard in shards[:2]:
        assert not isinstance(outcome(reader, shard), str)
    others[0].join()
    assert len(list(reader._known)) == 3


def test_records_of_a_file_are_recognised_together(tmp_path: Path) -> None:
    """Of records side by side, those whose frames are known are found, of one size or several; others are not."""
    tensors = [
        torch.ones(3, 4),
        torch.ones(4, 3),
        torch.ones(2, 6).T,
        torch.ones(50),
        torch.ones(12, dtype=torch.int32),
    ]
    known, new = [record_of(tensor) for tensor in tensors], [record_of(torch.ones(6, 2)), record_of([1, 2])]
    assert len({len(data) for data in known}) < len(known)  # several frames for one size
    reader = RecordReader()
    for number, data in enumerate(known):
        assert reader.open("w", region(tmp_path, data, f"shard-{number}")) is not None
    damaged = bytearray(known[0])
    damaged[0] ^= 1
    file, places = tmp_path / "shard", list[tuple[int, int]]()
    with file.open("wb") as out:
        for data in (*known, *new, bytes(damaged), *known):
            places.append((out.tell(), len(data)))
            out.write(data)
    found = reader.recognise(location(file).open(), places)
    specs = [frame and frame.spec.shape for frame in found]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    assert specs == [*shapes, None, None, None, *shapes]
    for frame, (start, size), tensor in zip(found, places, tensors, strict=False):
        assert frame is not None
        weights, out = frame.tensor("v", FileRegion(location(file).open(), start, size)), bytearray(tensor.nbytes)
        weights.read_into("v", 0, memoryview(out))
        assert bytes(out) == tensor.contiguous().numpy().tobytes()

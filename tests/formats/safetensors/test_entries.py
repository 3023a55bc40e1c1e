"""A long header, whose entries a pattern finds: it says what it says where JSON is parsed, or is refused as there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.errors import EmaError
from ema_cli.formats.safetensors import header as module
from ema_cli.formats.safetensors.header import open_file
from tests.formats.reading import read_all

TENSORS = {
    "layers.0.weight": torch.arange(6.0).reshape(2, 3),
    "layers.0.bias": torch.ones(3, dtype=torch.bfloat16),
    "größe[0]": torch.tensor(7),
    "none": torch.zeros(0, 2),
    "": torch.ones(1, dtype=torch.uint8),
}
FILE = save(TENSORS, {"format": "pt", "step": "7"})
LENGTH = int.from_bytes(FILE[:8], "little")
HEADER, DATA = FILE[8 : 8 + LENGTH].rstrip(), FILE[8 + LENGTH :]
CHANGES = {
    "as it is": HEADER,
    "spaces": HEADER + b"   ",
    "another order": HEADER.replace(b'"dtype":"U8","shape":[1]', b'"shape":[1],"dtype":"U8"'),
    "a space within": HEADER.replace(b'"shape":[2,3]', b'"shape":[2, 3]'),
    "an escape": HEADER.replace(b"layers.0.bias", rb"layers.0.\u0062ias"),
    "a zero before": HEADER.replace(b'"shape":[2,3]', b'"shape":[02,3]'),
    "an unknown type": HEADER.replace(b'"dtype":"BF16"', b'"dtype":"BF15"'),
    "another type": HEADER.replace(b'"dtype":"BF16"', b'"dtype":"F16"'),
    "another shape": HEADER.replace(b'"shape":[2,3]', b'"shape":[3,2]'),
    "a larger shape": HEADER.replace(b'"shape":[2,3]', b'"shape":[3,3]'),
    "a shape without end": HEADER.replace(b'"shape":[2,3]', b'"shape":[999999999999999999,3]'),
    "many dimensions": HEADER.replace(b'"shape":[3]', b'"shape":[3%b]' % (70 * b",1")),
    "half a byte": HEADER.replace(b'"dtype":"U8","shape":[1]', b'"dtype":"F4","shape":[1]'),
    "one name twice": HEADER.replace(b"layers.0.bias", b"layers.0.weight"),
    "metadata twice": HEADER.replace(b"layers.0.bias", b"__metadata__"),
    "no text": HEADER.replace(b"layers.0.bias", b"layers.0.\xff\xfeas"),
    "a hole": HEADER.replace(b'"data_offsets":[8,', b'"data_offsets":[9,'),
    "a comma too many": HEADER[:-1] + b",}",
    "a bracket too many": HEADER + b"}",
    "a bracket too few": HEADER[:-1],
    "metadata that are none": HEADER.replace(b'"step":"7"', b'"step":"\\ud800"'),
    "a long name": HEADER.replace(b"layers.0.bias", 2000 * b"n"),
    "no tensors": b'{"__metadata__":{"format":"pt"},}',
}


def said(path: Path) -> object:
    """Return all that a file says, or with which words it is refused."""
    try:
        tensors = open_file(path)
    except EmaError as error:
        return type(error), str(error)
    return (
        list(tensors.specs.items()),
        dict(tensors.offsets),
        tensors.data_start,
        dict(tensors.metadata),
        read_all(tensors),
    )


def with_header(path: Path, header: bytes) -> Path:
    """Write a file with this header before the same data."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + DATA)
    return path


def assert_alike(path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Check that a long header is read as a short one is; return what it says."""
    short = said(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_LONG", 0)
        assert said(path) == short
    return short


@pytest.mark.parametrize("change", CHANGES)
def test_a_long_header_says_what_a_short_one_says(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors, or the same error, to the letter."""
    assert CHANGES[change] != HEADER or change == "as it is"
    assert_alike(with_header(tmp_path / "a.safetensors", CHANGES[change]), monkeypatch)


def test_what_the_official_writer_writes_is_found_by_the_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON is not parsed then, but for the metadata."""
    path = with_header(tmp_path / "a.safetensors", HEADER)
    expected = said(path)
    monkeypatch.setattr(module, "_LONG", 0)
    monkeypatch.setattr(module, "_parse_header", None)
    assert said(path) == expected


def test_changed_headers_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """With bytes changed, left out or repeated: what is read, and what is refused, does not depend on the length."""
    drawn, read = random.Random(5), 0
    for _ in range(20_000 if full else 600):
        begin = drawn.randrange(len(HEADER))
        end = begin + drawn.choice((1, 1, 1, 2, 9, 40))
        part = drawn.choice((b"", bytes([drawn.choice(b'0129,:[]{}" \\x\xff')]), 2 * HEADER[begin:end]))
        path = with_header(tmp_path / "a.safetensors", HEADER[:begin] + part + HEADER[end:])
        read += isinstance(assert_alike(path, monkeypatch), tuple) and len(said(path)) == 5
    assert read > 5


def test_too_many_tensors_are_refused_in_a_long_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in a short one."""
    monkeypatch.setattr(module, "MAX_TENSORS", 4)
    assert MAX_TENSORS > 4
    short = assert_alike(with_header(tmp_path / "a.safetensors", HEADER), monkeypatch)
    assert "holds 5 tensors; at most 4 are read" in str(short)

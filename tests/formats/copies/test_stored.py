"""Where tensors lie in files: the ranges of bytes that hold a tensor's elements and nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.formats import open_checkpoint
from ema_cli.formats.copies.frames import join_spans
from ema_cli.formats.copies.stored import NotWrittenBack, check_apart, stored_pieces

VIEWS = {
    "whole": lambda base: base,
    "transposed": lambda base: base.transpose(0, 2),
    "channels last": lambda base: base.permute(1, 2, 0),
    "slice": lambda base: base[:, 1:3],
    "column": lambda base: base[:, :, 2],
    "every other": lambda base: base[:, :, ::2],
    "part of a transpose": lambda base: base.transpose(1, 2)[1:, 2:],
    "one": lambda base: base[1, 2, 3],
    "empty": lambda base: base[:0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_spans_of_a_view_are_its_elements(tmp_path: Path, view: str):
    """Bytes that are set in these ranges are those that torch sets through the view, and no others."""
    base = torch.zeros(4, 5, 6)
    torch.save({"w": VIEWS[view](base), "base": base}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    (piece,) = stored_pieces(checkpoint.tensors, "w")
    (whole,) = stored_pieces(checkpoint.tensors, "base")
    begin = min((begin for begin, _ in whole.spans()), default=0)
    found = {at - begin for low, high in piece.spans() for at in range(low, high, 4)}
    VIEWS[view](base).fill_(1)
    assert found == {4 * number for number in base.flatten().nonzero().flatten().tolist()}


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "empty"])
def test_a_piece_is_written_where_it_is_read(tmp_path: Path, view: str):
    """Any range of it, in C order, ends in the elements that torch has there; each byte is written once."""
    base = torch.arange(120.0).reshape(4, 5, 6)
    torch.save({"w": VIEWS[view](base), "base": base}, tmp_path / "x.pt")
    (piece,) = stored_pieces(open_checkpoint(tmp_path / "x.pt").tensors, "w")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    new = torch.randn(VIEWS[view](base).shape)
    content, touched = memoryview(new.numpy().tobytes()), list[int]()

    def write(offset: int, part: memoryview) -> None:
        data[offset : offset + len(part)] = part
        touched.extend(range(offset, offset + len(part)))

    middle = new.numel() // 3
    piece.write(write, 0, content[: 4 * middle])
    piece.write(write, middle, content[4 * middle :])
    (tmp_path / "y.pt").write_bytes(data)
    assert len(touched) == len(set(touched)) == 4 * new.numel()
    assert torch.equal(torch.load(tmp_path / "y.pt")["w"], new)


def test_elements_that_share_their_bytes_are_refused(tmp_path: Path):
    """An expanded tensor has one place for several averages."""
    torch.save({"w": torch.ones(3, 1).expand(3, 4), "o": torch.ones(9).as_strided((3, 4), (2, 1))}, tmp_path / "x.pt")
    tensors = open_checkpoint(tmp_path / "x.pt").tensors
    for name in ("w", "o"):
        (piece,) = stored_pieces(tensors, name)
        with pytest.raises(NotWrittenBack, match="share their bytes"):
            piece.spans()


def test_two_tensors_in_one_place_are_named():
    """Neighbours are apart; an overlap of one byte is not."""
    check_apart([(4, 8, "b"), (0, 4, "a"), (8, 9, "b")])
    with pytest.raises(NotWrittenBack, match="'a' and 'b' share bytes"):
        check_apart([(4, 8, "b"), (0, 5, "a")])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10))))
def test_joined_ranges_are_in_order_and_apart(pairs: list[tuple[int, int]]):
    """They hold the same bytes."""
    spans = [(begin, begin + size) for begin, size in pairs]
    joined = join_spans(spans)
    assert all(low[1] < high[0] for low, high in pairwise(joined))
    assert {at for span in joined for at in range(*span)} == {at for span in spans for at in range(*span)}

"""Headers that are equal to one before them but for the metadata: what is found is what is found without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.alike import outcomes

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int32)}
FIRST = save(TENSORS, {"format": "pt", "step": "7"})
METADATA = b'{"format":"pt","step":"7"}'


def with_header(change: Callable[[bytes], bytes]) -> bytes:
    """Return the file with a changed header before the same data."""
    length = int.from_bytes(FIRST[:8], "little")
    header = change(FIRST[8 : 8 + length].rstrip())
    return len(header).to_bytes(8, "little") + header + FIRST[8 + length :]


CHANGES = {
    "nothing": with_header(lambda header: header),
    "step": with_header(lambda header: header.replace(b'"7"', b'"70000"')),
    "order of the metadata": with_header(lambda header: header.replace(METADATA, b'{"step":"7","format":"pt"}')),
    "quotes": with_header(lambda header: header.replace(b'"7"', rb'"\"}, \\"')),
    "no entries": with_header(lambda header: header.replace(METADATA, b"{}")),
    "no metadata": with_header(lambda header: header.replace(b'"__metadata__":' + METADATA + b",", b"")),
    "no text": with_header(lambda header: header.replace(b'"7"', b"7")),
    "one key twice": with_header(lambda header: header.replace(METADATA, b'{"step":"7","step":"8"}')),
    "a comma too many": with_header(lambda header: header.replace(b'"7"}', b'"7",}')),
    "no UTF-8": with_header(lambda header: header.replace(b'"7"', b'"\xff"')),
    "half a character": with_header(lambda header: header.replace(b'"7"', rb'"\ud800"')),
    "a line break": with_header(lambda header: header.replace(b'"7"', b'"\n"')),
    "metadata twice": with_header(lambda header: header[:-1] + b',"__metadata__":{}}'),
    "metadata last": with_header(
        lambda header: header.replace(b'"__metadata__":' + METADATA + b",", b"")[:-1] + b',"__metadata__":{"step":"7"}}'
    ),
    "shape": save({**TENSORS, "a.weight": torch.ones(3, 2)}, {"format": "pt", "step": "7"}),
    "type": save({**TENSORS, "b": torch.ones(4)}, {"format": "pt", "step": "7"}),
    "name": save({"a.weight": TENSORS["a.weight"], "c": TENSORS["b"]}, {"format": "pt", "step": "7"}),
    "cut": FIRST[:-1],
    "longer": FIRST + b"1",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_like_the_one_before_is_read_as_by_itself(change: str, tmp_path: Path) -> None:
    """Whatever differs from the first file: the same tensors, or the same error."""
    (tmp_path / "1.safetensors").write_bytes(FIRST)
    (tmp_path / "2.safetensors").write_bytes(CHANGES[change])
    alone, after = outcomes(tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    assert after == alone


def test_metadata_do_not_keep_tables_from_being_shared(tmp_path: Path) -> None:
    """The step in a header is each file's own; what the tensors are is read once."""
    options, opened = ReadOptions(), []
    for step in (7, 700, 70_000):
        path = tmp_path / f"{step}.safetensors"
        path.write_bytes(save(TENSORS, {"format": "pt", "step": str(step)}))
        opened.append(open_checkpoint(path, options).tensors)
    assert {id(tensors.specs) for tensors in opened} == {id(opened[0].specs)}
    assert [tensors.metadata["step"] for tensors in opened] == ["7", "700", "70000"]


@given(at=st.integers(0, len(FIRST) - 1), bits=st.integers(1, 255), kind=st.sampled_from(["other", "gone", "twice"]))
def test_damage_to_a_file_like_the_one_before_is_seen_as_by_itself(
    at: int, bits: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A byte of it is another, or missing, or doubled: the same result, or the same error."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "1.safetensors").write_bytes(FIRST)
    damaged = {"other": bytes([FIRST[at] ^ bits]), "gone": b"", "twice": FIRST[at : at + 1] * 2}[kind]
    (folder / "2.safetensors").write_bytes(FIRST[:at] + damaged + FIRST[at + 1 :])
    alone, after = outcomes(folder / "1.safetensors", folder / "2.safetensors")
    assert after == alone

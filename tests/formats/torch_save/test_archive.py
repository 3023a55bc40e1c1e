"""Archives that are recognised by one before them: what is found in them is what is found without it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import CheckpointError
from ema_cli.formats.before import Before
from ema_cli.formats.torch_save import archive
from ema_cli.formats.torch_save.archive import Archive
from ema_cli.storage.location import location
from tests.formats.alike import outcomes
from tests.formats.pickles.pickled import Memory

BITS = st.sampled_from([1, 4, 0x20, 0x80])


def state(**changes: Any) -> dict[str, Any]:
    """Return what a training loop saves, of 70 small tensors and a large one."""
    model = {f"layers.{number}.weight": torch.full((2, 3), float(number)) for number in range(70)}
    return {"model": {**model, "head": torch.ones(300, 100), **changes}, "step": 7}


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "same": state,
    "values": lambda: state(head=torch.zeros(300, 100)),
    "step": lambda: {**state(), "step": 9},
    "long step": lambda: {**state(), "step": 70_000},
    "shape": lambda: state(**{"layers.5.weight": torch.ones(3, 2)}),
    "size": lambda: state(**{"layers.5.weight": torch.ones(2, 4)}),
    "dtype": lambda: state(**{"layers.5.weight": torch.ones(2, 3, dtype=torch.int32)}),
    "strides": lambda: state(**{"layers.5.weight": torch.ones(3, 2).T}),
    "offset": lambda: state(**{"layers.5.weight": torch.ones(3, 3)[1:]}),
    "one more": lambda: state(tail=torch.ones(2)),
    "name": lambda: {"model": {name.replace("5", "x"): tensor for name, tensor in state()["model"].items()}, "step": 7},
    "order": lambda: {"model": dict(reversed(state()["model"].items())), "step": 7},
    "tied": lambda: state(**dict.fromkeys(("layers.5.weight", "layers.6.weight"), torch.ones(2, 3))),
    "optimizer": lambda: {**state(), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["step-20.pt", "step-200.pt", "a'b c-20.pt", "\u00e9tape-2.pt"])
def test_a_file_like_the_one_before_is_read_as_by_itself(change: str, name: str, tmp_path: Path) -> None:
    """Whatever differs from the first file, and however the second is called."""
    torch.save(state(), tmp_path / "step-10.pt")
    torch.save(CHANGES[change](), tmp_path / name)
    alone, after = outcomes(tmp_path / "step-10.pt", tmp_path / name)
    assert after == alone
    assert isinstance(alone[0], list)


@given(data=st.data())
def test_damage_to_a_file_like_the_one_before_is_seen_as_by_itself(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A byte of it is another, or some are missing or doubled: the same result, or the same error."""
    folder = tmp_path_factory.mktemp("damage")
    torch.save(state(), folder / "step-10.pt")
    torch.save(state(), folder / "step-20.pt")
    stored = (folder / "step-20.pt").read_bytes()
    begin = stored.index(b"PK\1\2")
    # In the tensors' own bytes, which are most of it, there is nothing to be seen.
    at = data.draw(st.one_of(st.integers(0, 20_000), st.integers(begin, len(stored) - 1)))
    damaged = data.draw(st.sampled_from([b"", stored[at : at + 1] * 2, bytes([stored[at] ^ data.draw(BITS)])]))
    (folder / "step-20.pt").write_bytes(stored[:at] + damaged + stored[at + 1 :])
    alone, after = outcomes(folder / "step-10.pt", folder / "step-20.pt")
    assert after == alone


def test_an_archive_like_the_one_before_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its directory nor its local headers; one that has another local header is."""
    before, parsed = Before(), []
    read_entries = archive.read_entries
    monkeypatch.setattr(archive, "read_entries", lambda *args: parsed.append(args) or read_entries(*args))
    for step in (10, 20, 30):
        torch.save(state(), tmp_path / f"step-{step}.pt")
        file = location(tmp_path / f"step-{step}.pt").open()
        spans = Archive(file, before).spans([str(number) for number in range(71)], "data/")
        assert len(parsed) == 1
        for number in range(70):
            assert file.read(spans[str(number)][0], 24) == torch.full((2, 3), float(number)).numpy().tobytes()
    stored = (tmp_path / "step-30.pt").read_bytes()
    at = stored.index(b"step-30/data/5FB")
    other = Memory(stored[: at - 1] + b"\1" + stored[at:])  # another length of what follows the name
    with pytest.raises(CheckpointError, match="overlaps another"):
        Archive(other, before).spans([str(number) for number in range(71)], "data/")
    assert len(parsed) == 2


def test_an_archive_with_a_record_outside_its_folder_is_read_by_itself(tmp_path: Path) -> None:
    """Such an archive says nothing of those after it."""
    out = io.BytesIO()
    torch.save({"w": torch.ones(2)}, out)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(out.getvalue())
        with zipfile.ZipFile(tmp_path / name, "a") as added:
            added.writestr("beside", b"1")
    alone, after = outcomes(tmp_path / "a.pt", tmp_path / "b.pt")
    assert after == alone
    assert alone[0] == ["w"]

"""What an error says of a path in the place of a small file: each thing that people name by mistake, and what it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError, EmaError, Unreadable, UsageError
from ema_cli.planning import named_file
from ema_cli.planning.named_file import read_named_text
from ema_cli.storage.local_place import LocalPlace


def test_what_lies_there_is_said(tmp_path: Path):
    """Nothing, a folder, a FIFO, an empty file, a checkpoint, a damaged one, an average, other bytes, too many."""
    save_file({"w": torch.ones(2)}, tmp_path / "step-1.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "step-1.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "step-1.safetensors").read_bytes()[:40])
    save_file({"w": torch.ones(2)}, tmp_path / "mean.safetensors", {"ema_cli": '{"checkpoints": [["a", "1ba", 1.0]]}'})
    (tmp_path / "empty.csv").touch()
    (tmp_path / "bytes").write_bytes(b"ab\xff\xfe")
    (tmp_path / "large").write_bytes(b"a" * 101)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    said = {}
    for name in ("none", ".", "fifo", *(path.name for path in tmp_path.iterdir())):
        with pytest.raises(UsageError) as raised:
            read_named_text(tmp_path / name, 100, option="coefficients", hint="as that")
        assert (raised.value.option, raised.value.hint) == ("coefficients", "as that")
        assert raised.value.subject == tmp_path / name
        said[name] = raised.value.fact
    assert said == {
        "none": "does not exist",
        ".": "is a folder",
        "fifo": "is not a regular file",
        "loop": "is a link that leads nowhere",
        "step-1.safetensors": "is a checkpoint",
        "step-1.pt": "is a checkpoint",
        "cut.safetensors": "looks like a checkpoint",
        "mean.safetensors": "is an average of ema-cli's",
        "empty.csv": "is empty",
        "bytes": "is no text",
        "large": "101 bytes are too many for this file; at most 100 are read",
    }


@pytest.mark.parametrize("place", ["info", "open"])
@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (CheckpointError("403 Forbidden", hint="credentials come from the environment"), "credentials come from the "),
        (Unreadable("cannot be opened: Permission denied"), "see who may read it: ls -ld "),
    ],
)
def test_the_nearer_advice_is_given(
    place: str, error: EmaError, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Who may not read a file is not told what it should look like, or how to make another."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "a").write_text("a,1")
    monkeypatch.setattr(LocalPlace, place, refuse)
    monkeypatch.setattr(named_file, "check_exists", lambda path: None)
    monkeypatch.setattr(named_file, "weights_in", lambda path: None)
    with pytest.raises(UsageError) as raised:
        read_named_text(tmp_path / "a", 100, option="coefficients", hint="as that")
    assert (raised.value.hint or "").startswith(hint)


def test_a_short_text_is_read_whatever_its_name(tmp_path: Path):
    """The first bytes of a checkpoint are looked for; fewer than that are a text all the same, with no mark before."""
    for name in ("a", "rank0.csv", "model-00001-of-00002.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfa,1")
        assert read_named_text(tmp_path / name, 100, option="coefficients", hint=None) == "a,1"

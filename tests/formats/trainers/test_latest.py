"""The small files in which a trainer names its newest whole checkpoint: a newer folder is not done yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ema_cli.errors import IncompleteCheckpoint
from ema_cli.formats.trainers.latest import check_latest

# Name of the file, its text, the folder.
DONE = [
    ("latest", "global_step20", "global_step20"),
    ("latest", "global_step20\n", "global_step7"),
    ("latest_checkpointed_iteration.txt", "20", "iter_0000020"),
    ("latest_checkpointed_iteration.txt", "release", "iter_0000020"),
    ("latest", "", "global_step20"),
    ("latest", "global_step20", "final"),
    ("latest", "global_step20", "step-99-best"),
    ("other", "global_step20", "global_step99"),
    ("latest", "20" + "0" * 5000, "global_step99"),
]
NOT_DONE = [
    ("latest", "global_step20", "global_step21"),
    ("latest", " global_step20 \n", "global_step100"),
    ("latest_checkpointed_iteration.txt", "20\n", "iter_0000021"),
]


def mark(folder: Path, name: str, text: str, checkpoint: str) -> Path:
    """Write the file and the checkpoint's folder, and return that."""
    (folder / name).write_text(text)
    (folder / checkpoint).mkdir()
    return folder / checkpoint


@pytest.mark.parametrize(("name", "text", "checkpoint"), DONE)
def test_a_folder_that_is_not_newer_than_the_mark_is_whole(
    name: str, text: str, checkpoint: str, tmp_path: Path
) -> None:
    """The newest, older ones, and whatever has no number to compare pass."""
    check_latest(mark(tmp_path, name, text, checkpoint))


@pytest.mark.parametrize(("name", "text", "checkpoint"), NOT_DONE)
def test_a_folder_that_is_newer_than_the_mark_is_incomplete(
    name: str, text: str, checkpoint: str, tmp_path: Path
) -> None:
    """Numbers are compared as numbers; the error names folder, text and file."""
    path = mark(tmp_path, name, text, checkpoint)
    with pytest.raises(IncompleteCheckpoint) as caught:
        check_latest(path)
    message = f"{path}: is newer than '{text.strip()}', which '{name}' beside it names as the newest that is whole"
    assert str(caught.value) == message


def test_a_mark_that_is_no_file_is_passed_over(tmp_path: Path) -> None:
    """A folder, a FIFO or a link that leads nowhere under that name is no mark; nobody waits for it."""
    (tmp_path / "global_step9").mkdir()
    (tmp_path / "latest").mkdir()
    check_latest(tmp_path / "global_step9")
    (tmp_path / "latest").rmdir()
    os.mkfifo(tmp_path / "latest")
    check_latest(tmp_path / "global_step9")
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("nowhere")
    check_latest(tmp_path / "global_step9")

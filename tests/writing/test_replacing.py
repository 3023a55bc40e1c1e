"""What an output may replace, and what it must not."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ema_cli import averaging
from ema_cli.errors import OutputError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.manifest.manifest import manifest_text
from ema_cli.manifest.sums import is_own_sidecar, sidecars, sums_text
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import open_run
from ema_cli.storage.local_file import LocalFile
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile
from ema_cli.writing.replacing import check_target
from ema_cli.writing.target import Target
from tests.conftest import make_tensors, write_torch_run


def refuse(target: Target, match: str, *, force: bool = True, inputs: tuple[InputFile, ...] = ()) -> None:
    with pytest.raises(OutputError, match=match) as raised:
        check_target(target, inputs, force=force)
    assert raised.value.exit_code == 5
    assert raised.value.hint


def test_a_missing_folder_is_named(tmp_path: Path):
    """The folder of the target must be there; the hint makes it."""
    refuse(Target(tmp_path / "no" / "x.safetensors", False), "no does not exist")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path):
    """There `mkdir -p` helps nobody."""
    (tmp_path / "file").touch()
    for name in ("file/x.safetensors", "file/more/x.safetensors"):
        refuse(Target(tmp_path / name, False), "file is no folder")


def test_an_existing_target_needs_force(tmp_path: Path):
    """A file that is there is refused without force, and free with it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    refuse(Target(path, False), "exists already", force=False)
    check_target(Target(path, False), (), force=True)


@pytest.mark.parametrize("is_folder", [True, False])
def test_nobody_is_told_to_force_what_cannot_be_replaced(tmp_path: Path, is_folder: bool):
    """Who followed the hint was refused once more, by another error: the run itself, named as the output."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already, and ") as raised:
        check_target(Target(tmp_path / "run", is_folder), (), force=False)
    assert "force" not in str(raised.value.hint)
    assert "write elsewhere" in str(raised.value.hint)


SUM = "0" * 64


def own_sidecars(path: Path) -> tuple[Path, Path]:
    """Write a manifest and sums as ema-cli leaves them beside a file, of which there are a few tensors."""
    manifest, sums = sidecars(path)
    rows = ({"name": f"layer.{number}"} for number in range(3))
    manifest.write_bytes(
        b"".join(manifest_text({"tool": {"name": "ema-cli", "version": "0"}, "warnings": ["odd"]}, rows))
    )
    sums.write_bytes(sums_text({path.name: SUM, manifest.name: SUM}))
    return manifest, sums


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "a\\b\n.safetensors"])
def test_own_manifest_and_sums_are_known_again(tmp_path: Path, name: str):
    """Alone, as a killed run leaves them, they are in nobody's way; beside a file they go with it, by force."""
    path = tmp_path / name
    manifest, sums = own_sidecars(path)
    assert is_own_sidecar(manifest, name)
    assert is_own_sidecar(sums, name)
    check_target(Target(path, False), (), force=False)
    path.write_bytes(b"old")
    refuse(Target(path, False), "exists already", force=False)
    check_target(Target(path, False), (), force=True)


FOREIGN = {
    "of another file": (1, sums_text({"y.safetensors": SUM, "y.safetensors.manifest.json": SUM})),
    "of one file more": (1, sums_text({"x.safetensors": SUM, "x.safetensors.manifest.json": SUM, "y": SUM})),
    "of the file alone": (1, sums_text({"x.safetensors": SUM})),  # to compare what we write with
    "no sums": (1, b"mine"),
    "empty sums": (1, b""),
    "long sums": (1, sums_text({"x.safetensors": SUM, "x.safetensors.manifest.json": SUM}) + b"\n" * (1 << 20)),
    "another tool's": (0, b'{\n "tool": {\n  "name": "other",\n  "version": "1"\n }\n}\n'),
    "our name elsewhere": (0, b'{\n "author": {\n  "name": "ema-cli"\n }\n}\n'),
    "cut short": (0, b'{\n "tensors": [],\n "tool": {\n  "name": "ema-cli",\n'),
    "no manifest": (0, b"mine"),
    "empty": (0, b""),
}


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("label", FOREIGN)
def test_foreign_files_of_our_names_are_never_replaced(tmp_path: Path, label: str, force: bool):
    """Whatever has the name of our manifest or sums and is neither stays, force or not."""
    number, content = FOREIGN[label]
    path = tmp_path / "x.safetensors"
    own_sidecars(path)[number].write_bytes(content)
    refuse(Target(path, False), re.escape(sidecars(path)[number].name) + ".*is not ema-cli's", force=force)


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("suffix", [".manifest.json", ".sha256"])
def test_an_average_leaves_what_is_not_ours_beside_it(tmp_path: Path, suffix: str, manifest: bool, moment: str):
    """By force, and where it would write none itself: the user's file and the older average stay, nothing else does."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    plan = make_plan(open_run([tmp_path / "run"]), Recipe(half_life=Time.parse("2ba")))
    out = tmp_path / "x.safetensors"
    out.write_bytes(b"old")
    mine = tmp_path / f"x.safetensors{suffix}"

    def put(*_: int) -> None:
        mine.write_bytes(b"mine")

    if moment == "before":
        put()
    with pytest.raises(OutputError, match="is not ema-cli's") as raised:
        averaging.average(plan, Target(out, False), force=True, manifest=manifest, progress=put)
    assert raised.value.exit_code == 5
    assert (out.read_bytes(), mine.read_bytes()) == (b"old", b"mine")
    assert {path.name for path in tmp_path.iterdir()} == {"run", out.name, mine.name}


@pytest.mark.parametrize("number", [0, 1])
def test_a_link_or_a_folder_beside_a_file_is_not_ours(tmp_path: Path, number: int):
    """Also a link to a manifest of ours: what it leads to belongs elsewhere."""
    path, other = tmp_path / "x.safetensors", tmp_path / "other"
    beside = own_sidecars(path)[number]
    beside.rename(other)
    for make in (lambda: beside.symlink_to(other), lambda: beside.symlink_to("nowhere"), beside.mkdir):
        make()
        refuse(Target(path, False), "is not ema-cli's")
        if beside.is_symlink():
            beside.unlink()


@pytest.mark.slow
def test_a_long_manifest_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """That of a hundred thousand tensors takes more memory than averaging them does: its end tells whose it is."""
    path = tmp_path / "x.safetensors"
    rows = ({"name": f"layers.{number}", "shape": [4096, 4096]} for number in range(50_000))
    sidecars(path)[0].write_bytes(b"".join(manifest_text({"tool": {"name": "ema-cli", "version": "0"}}, rows)))
    sizes = []
    real = LocalFile.read

    def read(file: LocalFile, offset: int, size: int) -> bytes:
        sizes.append(size)
        return real(file, offset, size)

    monkeypatch.setattr(LocalFile, "read", read)
    check_target(Target(path, False), (), force=False)
    assert 0 < sum(sizes) < 2 << 20 < sidecars(path)[0].stat().st_size


def test_an_unreadable_file_beside_is_not_called_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failing disk is told as such."""
    path = tmp_path / "x.safetensors"
    own_sidecars(path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    refuse(Target(path, False), "x.safetensors.manifest.json: cannot be read at byte 0: Input/output error")


def test_a_fifo_a_link_and_a_device_are_never_replaced(tmp_path: Path):
    """A FIFO, a link and a device stay what they are, force or not."""
    fifo, link = tmp_path / "f.safetensors", tmp_path / "l.safetensors"
    os.mkfifo(fifo)
    (tmp_path / "mine").write_bytes(b"")
    link.symlink_to(tmp_path / "mine")
    for path in (fifo, link, Path("/dev/null")):
        refuse(Target(path, False), "neither a regular file nor a folder")


def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path: Path):
    """A folder in the place of a file, or the other way round, is refused."""
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "out").write_bytes(b"")
    refuse(Target(tmp_path / "x.safetensors", False), "is a folder, and a file would replace it")
    refuse(Target(tmp_path / "out", True), "is a file, and a folder would replace it")


def test_an_input_is_never_replaced(tmp_path: Path):
    """The target may not be an input, nor a folder that holds one, by whatever path."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(make_tensors(1), folder / "model.safetensors")
    inputs = (location(folder / "model.safetensors").open(),)
    refuse(Target(folder / ".." / "checkpoint" / "model.safetensors", False), "holds an input", inputs=inputs)
    refuse(Target(folder, True), "holds an input, model.safetensors", inputs=inputs)


def own_folder(folder: Path) -> None:
    """Write a folder as ema-cli leaves it."""
    folder.mkdir()
    recipe = json.dumps(
        {"version": "0", "checkpoints": [], "files": ["config.json", "additional_chat_templates/a.jinja"]}
    )
    save_file(make_tensors(1), folder / "model.safetensors", metadata={"ema_cli": recipe})
    (folder / "config.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").write_text("")


def test_force_replaces_a_folder_of_our_own_only(tmp_path: Path):
    """A folder whose files our metadata lists may go; one file more, anywhere in it, and it stays."""
    folder = tmp_path / "out"
    own_folder(folder)
    check_target(Target(folder, True), (), force=True)
    for foreign in ("notes.txt", ".git", "additional_chat_templates/mine.jinja"):
        (folder / foreign).write_text("mine")
        refuse(Target(folder, True), f"holds '{foreign}', which ema-cli did not write")
        (folder / foreign).unlink()


def test_an_empty_folder_or_a_link_in_it_is_somebody_s(tmp_path: Path):
    """What holds no file is not ours to remove either."""
    folder = tmp_path / "out"
    own_folder(folder)
    (folder / "sub").mkdir()
    refuse(Target(folder, True), "holds 'sub', which ema-cli did not write")
    (folder / "sub").rmdir()
    (folder / "link").symlink_to(tmp_path)
    refuse(Target(folder, True), "holds 'link', which ema-cli did not write")


def own_file(path: Path) -> None:
    """Write a file as ema-cli leaves it."""
    recipe = json.dumps({"version": "0", "checkpoints": []})
    save_file(make_tensors(1), path, metadata={"ema_cli": recipe})


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", "mine.safetensors", "ema-2ba/notes.txt", "sub", "link", "ema-3ba", "ema-4ba.safetensors.sha256"],
)
def test_force_replaces_a_folder_of_several_averages_of_our_own_only(tmp_path: Path, foreign: str):
    """Files and folders of ours side by side may go; with anything else among them, at any depth, all stay."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    own_file(folder / "ema-1ba.safetensors")
    own_sidecars(folder / "ema-1ba.safetensors")
    own_folder(folder / "ema-2ba")
    own_file(folder / "ema-4ba.safetensors")
    check_target(Target(folder, True), (), force=True)
    path = folder / foreign
    if foreign == "sub":
        path.mkdir()
    elif foreign == "link":
        own_folder(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif foreign == "ema-3ba":
        path.mkdir()
        save_file(make_tensors(1), path / "model.safetensors", metadata={"format": "pt"})
    elif foreign.endswith(".safetensors"):
        save_file(make_tensors(1), path)
    else:
        path.write_text("mine")
    refuse(Target(folder, True), f"holds '{foreign}', which ema-cli did not write")


def test_averages_deeper_than_that_are_somebody_s(tmp_path: Path):
    """A folder of folders of averages is nothing that ema-cli makes."""
    (tmp_path / "all" / "sweep").mkdir(parents=True)
    own_file(tmp_path / "all" / "sweep" / "ema-1ba.safetensors")
    refuse(Target(tmp_path / "all", True), "holds 'sweep', which ema-cli did not write")


def test_force_leaves_a_model_that_is_not_ours(tmp_path: Path):
    """A folder with a model, but without our metadata, is the user's."""
    folder = tmp_path / "out"
    folder.mkdir()
    save_file(make_tensors(1), folder / "model.safetensors", metadata={"format": "pt"})
    refuse(Target(folder, True), "holds 'model.safetensors'")


def test_an_empty_folder_may_be_replaced(tmp_path: Path):
    """There is nothing to lose in an empty folder; without force it is refused all the same."""
    (tmp_path / "out").mkdir()
    check_target(Target(tmp_path / "out", True), (), force=True)
    refuse(Target(tmp_path / "out", True), "exists already", force=False)


def test_a_target_that_cannot_be_looked_at_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a failing disk an existing folder used to count as absent, and was replaced unchecked with --force."""
    (tmp_path / "out").mkdir()

    real = os.stat

    def fail(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if not follow_symlinks:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(os, "stat", fail)
    refuse(Target(tmp_path / "out", is_folder=True), "out: cannot be looked at: Input/output error")


def test_a_name_that_no_output_can_have_is_refused(tmp_path: Path):
    """Before anything is averaged; also where only the name of the manifest is too long."""
    for name in ("x" * 300, "x" * 240 + ".safetensors"):
        refuse(Target(tmp_path / name, is_folder="." not in name), "cannot be looked at: File name too long")

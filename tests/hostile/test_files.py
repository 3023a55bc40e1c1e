"""What is no checkpoint, whatever it is called: FIFOs, sockets, devices, loops, compressed files, other frameworks."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shlex
import socket
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, Harness, Kind, parameters
from tests.hostile.make import call, good_zip, saved, torch_zip, whole, writes
from tests.hostile.programs import CREATE, IDLE

KIND = Kind("ep1-ba{}-rank0.pt", good_zip)
NAMED = "ep1-ba3-rank0.pt"
NOT_REGULAR = "not a regular file"


def named(file: str, content: Callable[[], bytes] | bytes, says: str, hint: str) -> Case:
    """Return a case of a file under its own name, which the search of a folder does not pass over."""

    def write(path: Path, canary: Path) -> None:
        writes(content)(path.with_name(file), canary)

    return Case(write, says + "|" + hint, file=f"run/{file}", label=file)


def instead(label: str, make: Callable[[Path], object], says: str = NOT_REGULAR) -> Case:
    """Return a case of something in place of a file."""
    return Case(lambda path, _: make(path), says, passed=True, label=label)


def a_socket(path: Path) -> None:
    """Listen at a path, by way of a short one: addresses are short."""
    here = os.open(path.parent, os.O_RDONLY)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{here}/{path.name}")
    server.close()
    os.close(here)


def a_loop(path: Path) -> None:
    """Link a path to itself."""
    path.symlink_to(path.name)


def two_links(path: Path) -> None:
    """Link two paths to each other."""
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


def a_tar() -> bytes:
    """Return a tar archive. A hostile one would name a member that lies outside; none is unpacked here."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("member"), io.BytesIO())
    return out.getvalue()


FILES = [
    instead("a FIFO", os.mkfifo),
    instead("a socket", a_socket),
    instead("a device", lambda path: path.symlink_to("/dev/zero")),
    instead("a terminal", lambda path: path.symlink_to("/dev/tty")),
    instead("random bytes", lambda path: path.symlink_to("/dev/urandom")),
    instead("a link to itself", a_loop, "cannot be opened"),
    instead("two links to each other", two_links, "cannot be opened"),
    instead("a link to nothing", lambda path: path.symlink_to("nothing"), "cannot be opened"),
    Case(writes(b""), "is empty", passed=True, label="nothing"),
    Case(writes(b"\0" * 100), "not a checkpoint", passed=True, label="zeros"),
    Case(writes(b"\x1b[31m\x1b]0;title\x07" * 10), "not a checkpoint", passed=True, label="text that steers"),
    Case(writes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "git lfs pull",
         label="a Git LFS pointer"),
    Case(writes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5", label="HDF5"),
    Case(writes(b"GGUF\x03\0\0\0" + struct.pack("<2Q", 1 << 60, 1 << 60)), "GGUF", label="GGUF"),
    Case(writes(a_tar), "tar -xf", label="a tar archive"),
    Case(lambda path, _: writes(gzip.compress(bytes(50_000_000)))(path, path), "gunzip", label="a gzip bomb"),
]  # fmt: skip
SAVED = torch_zip(saved())
COMPRESSED = [
    named(f"{NAMED}.zst", b"\x28\xb5\x2f\xfd" + bytes(40), "zstd", f"zstd -d run/{NAMED}.zst"),
    named(f"{NAMED}.gz", gzip.compress(SAVED), "gzip", f"gunzip run/{NAMED}.gz"),
    named(f"{NAMED}.lz4", b"\x04\x22\x4d\x18" + bytes(40), "lz4", f"lz4 -d run/{NAMED}.lz4"),
    named(f"{NAMED}.bz2", bz2.compress(SAVED), "bzip2", f"bunzip2 run/{NAMED}.bz2"),
    named(f"{NAMED}.xz", lzma.compress(SAVED), "xz", f"unxz run/{NAMED}.xz"),
    named(f"{NAMED}.lzma", lzma.compress(SAVED, lzma.FORMAT_ALONE), "lzma", f"unlzma run/{NAMED}.lzma"),
    named("ep1-ba3 $(true);-rank0.pt.zst", b"\x28\xb5\x2f\xfd" + bytes(40), "zstd",
          f"zstd -d {shlex.quote('run/ep1-ba3 $(true);-rank0.pt.zst')}"),
]  # fmt: skip
FOLDERS = {
    "Flax": ("flax_model.msgpack.index.json", "Flax"),
    "a SavedModel": ("saved_model.pb", "TensorFlow"),
    "TensorFlow's weights": ("tf_model.h5", "TensorFlow"),
    "TensorFlow's checkpoint": ("ckpt.data-00000-of-00001", "TensorFlow"),
    "torch_checkpointing without torch": ("metadata.pkl", "torch_checkpointing"),
}
OTHERS = [
    Case(lambda path, _, file=file: (path.mkdir(), (path / file).write_bytes(whole(call(CREATE, IDLE))))[0], says,
         label=label)
    for label, (file, says) in FOLDERS.items()
]  # fmt: skip


def good_folder(path: Path, step: int) -> None:
    """Write a folder that holds one file."""
    path.mkdir()
    good_zip(path / "model.pt", step)


@pytest.mark.parametrize("case", parameters(FILES))
def test_no_fifo_device_or_loop_is_opened(case: Case, harness: Harness) -> None:
    """What is no regular file is never opened; what is something else is named for what it is."""
    harness.check(KIND, case)


@pytest.mark.parametrize("case", parameters(COMPRESSED))
def test_compressed_files(case: Case, harness: Harness) -> None:
    """A compressed file is an error with the command that unpacks it, quoted for a shell."""
    says, _, hint = case.says.partition("|")
    assert case.file
    work = harness.run_of(KIND, case.build, "hostile")
    commands = [["inspect", case.file]]
    # A name that is not the run's but for its numbers is passed over.
    commands += [] if "$" in case.file else [["average", "run", "--half-life", "1ba"]]
    for arguments in commands:
        ended = harness.go(case, arguments, work)
        harness.check_error(case, ended, case.file, 3, f"is compressed with {says}")
        assert hint in ended.lines("hint: ")[0], ended


@pytest.mark.parametrize("case", parameters(OTHERS))
def test_folders_of_others(case: Case, harness: Harness) -> None:
    """A folder of another framework is named for what it is."""
    harness.check(Kind("step-{}", good_folder), case)


@pytest.mark.slow
def test_a_loop_of_folders(harness: Harness) -> None:
    """Folders that link to themselves, to each other and above themselves are searched once."""
    work = harness.run_of(KIND, lambda path, _: good_zip(path, 3), "loops")
    (work / "run" / "self").symlink_to("self")
    (work / "run" / "here").symlink_to(".")
    (work / "run" / "above").symlink_to("..")
    deep = work / "run"
    for _ in range(40):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "top").symlink_to(work / "run")
    case = Case(a_loop)
    ended = harness.go(case, ["average", "run", "--half-life", "1ba", "-o", "out.safetensors"], work)
    assert ended.code == 0, ended
    assert (work / "out.safetensors").read_bytes() == harness.good_output(KIND, case, ["--half-life", "1ba"])


@pytest.mark.slow
def test_names_that_steer_a_terminal(harness: Harness) -> None:
    """File names with escapes, markup and newlines are shown escaped wherever a name is shown."""
    name = "ep1-ba{} \x1b[31m[red]\n\u202e.pt"
    work = harness.run_of(Kind(name, good_zip), lambda path, _: path.write_bytes(b""), "names")
    for arguments in (["inspect", "run"], ["inspect", "run", "--half-life", "1ba"],
                      ["average", "run", "--half-life", "1ba", "--dry-run"]):  # fmt: skip
        ended = harness.go(Case(a_loop), arguments, work)
        assert ended.code == 0, ended
        assert rb"\x1b[31m[red]\n\u202e.pt" in ended.out, ended

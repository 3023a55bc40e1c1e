"""NeMo's archives: tar headers that lie, members that lead elsewhere, weights that are programs."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.conftest import Case, Harness, Kind, parameters
from tests.hostile.make import ESCAPES, WEIGHTS, data, mapping, torch_zip, whole, writes
from tests.hostile.programs import CONTAINERS, PROGRAMS

NAME = "model_weights.ckpt"


def weights(step: int = 3, **more: bytes) -> bytes:
    """Return a state dict as torch.save writes it, with more in it."""
    return torch_zip(whole(mapping({**WEIGHTS, **more})), data(step))


def packed(*members: tuple[str, bytes], form: int = tarfile.GNU_FORMAT, **header: Any) -> bytes:
    """Return an archive; what `header` says of the last member is not checked by anybody."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in header.items() if name == members[-1][0] else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def patched(at: int, field: bytes) -> Callable[[], bytes]:
    """Return an archive with another field in the header of its weights, and the sum of the header's bytes mended."""

    def make() -> bytes:
        made = bytearray(packed((f"./{NAME}", weights())))
        made[at : at + len(field)] = field
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made[:512])
        return bytes(made)

    return make


def many(count: int) -> Callable[[], bytes]:
    """Return an archive with many members without bytes before its weights."""
    return lambda: packed(("n", b""), type=tarfile.DIRTYPE)[:512] * count + packed((NAME, weights()))


def link(kind: bytes, target: str) -> Callable[[], bytes]:
    """Return an archive whose weights are a link."""
    return lambda: packed((NAME, b""), type=kind, linkname=target)


KIND = Kind(
    "step-{}.nemo", lambda path, step: path.write_bytes(packed(("./m.yaml", b"x"), (f"./{NAME}", weights(step))))
)
GONE = f"a tar archive without {NAME}"
CASES = {
    "a link to outside": (link(tarfile.SYMTYPE, "/dev/zero"), GONE),
    "a hard link": (link(tarfile.LNKTYPE, "../step-1.nemo"), GONE),
    "a device": (lambda: packed((NAME, b""), type=tarfile.CHRTYPE, devmajor=1, devminor=5), GONE),
    "a FIFO": (lambda: packed((NAME, b""), type=tarfile.FIFOTYPE), GONE),
    "weights outside": (lambda: packed((f"/{NAME}", weights())), "in parts"),
    "weights above": (lambda: packed((f"../{NAME}", weights())), "in parts"),
    "weights twice": (lambda: packed((NAME, weights()), (f"./{NAME}", weights(4))), "twice"),
    "a size of 2^33": (patched(124, b"77777777777\0"), "cut short"),
    "a size of 2^80": (patched(124, b"\x80" + b"\xff" * 11), "damaged"),
    "a size below nothing": (patched(124, b"\xff" * 12), "damaged"),
    "a size of letters": (patched(124, b"0x100000000\0"), "damaged"),
    "a size of nothing": (patched(124, b"00000000000\0"), ""),
    "a size in other words": (
        lambda: packed((NAME, weights()), form=tarfile.PAX_FORMAT, pax_headers={"size": "9" * 40}), "cut short"),
    "a name that is not text": (patched(0, b"\xff\xfe"), "not UTF-8"),
    "a name that steers": (lambda: packed((f"model_weights/{ESCAPES}", b"")), "in parts"),
    "a name of a megabyte": (lambda: packed((NAME + "n" * 1_000_000, weights())), "damaged"),
    "seventy thousand members": (many(70_000), "more than 65536 members"),
    "a gzip bomb": (lambda: gzip.compress(bytes(50_000_000)), "compressed with gzip"),
    "no end": (lambda: packed((NAME, weights()))[:600], "cut short"),
    "weights that are a list": (lambda: packed((NAME, torch_zip(whole(b"]"), {}))), ""),
    "weights of text": (lambda: packed((NAME, b"x" * 5000)), ""),
}  # fmt: skip
# One of each kind; the others are for `make test-full`.
QUICK = ("a link to outside", "weights twice", "a size of 2^80", "a size in other words", "seventy thousand members")
ARCHIVES = [
    *(replace(Case(writes(make), says, label=label, passed="cut short" in says), full=label not in QUICK)
      for label, (make, says) in CASES.items()),
    *(Case(lambda path, canary, label=label: path.write_bytes(packed((NAME, weights(x=PROGRAMS[label](canary))))),
           "" if label in CONTAINERS else "'x'", code=0 if label in CONTAINERS else 3,
           label=f"{label}, among the weights", full=label != "REDUCE") for label in PROGRAMS),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(ARCHIVES))
def test_hostile_archives(case: Case, harness: Harness) -> None:
    """No header leads outside of the archive, and nothing in it runs or takes for ever."""
    harness.check(KIND, case)


def test_the_archive_is_what_it_seems(tmp_path: Path) -> None:
    """What is packed here is an archive to Python's own reader, too."""
    KIND.good(tmp_path / "a.nemo", 3)
    with tarfile.open(tmp_path / "a.nemo", "r:") as archive:
        member = archive.extractfile(f"./{NAME}")
        assert member is not None
        assert member.read() == weights()

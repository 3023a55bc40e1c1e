"""Headers, metadata and tensors of an average, compared with its manifest."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.release.published import find_averages
from ema_cli.release.verify import verify
from tests.release.verified import (
    MANIFEST,
    SINGLE,
    SINGLE_MANIFEST,
    SUMS,
    against,
    edit_header,
    edit_mark,
    problems,
    vouch,
)


def test_a_manifest_that_is_not_json(copy: Path):
    """A manifest that does not parse is a problem, and so is one of another schema."""
    path = copy / "folder" / MANIFEST
    path.write_text("{")
    assert any(each.startswith(f"folder/{MANIFEST}: not valid JSON") for each in problems(copy / "folder"))
    path.write_text('{"schema_version": 2}')
    assert any("is no manifest that this version" in each for each in problems(copy / "folder"))


def test_a_weight_in_the_manifest(copy: Path):
    """A weight that was changed, with all sums made anew, is not that of the metadata."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["inputs"][1]["weight"] = 0.5

    vouch(copy / SINGLE, edit)
    (found,) = problems(copy / SINGLE)
    assert found == f"{SINGLE}: its metadata give step-200.pt the weight 0.1875, but {SINGLE_MANIFEST} 0.5"


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("half_life", "7ba", f"its metadata say half_life 7ba, but {MANIFEST} half_life 50ba"),
        ("version", "9", f"its metadata say version 9, but {MANIFEST} version "),
        ("dtype", "F16", f"its metadata say dtype F16, but {MANIFEST} no dtype"),
        ("files", ["x"], f"its metadata say files x, but {MANIFEST} files README.md, config.json, tokenizer.json"),
        ("copied", ["layer.bias"], f"its metadata say that other tensors were copied than {MANIFEST}"),
        ("checkpoints", [["a", "1ba", 1.0]], f"its metadata name 1 checkpoints, but {MANIFEST} 3"),
    ],
)
def test_metadata_that_say_otherwise(copy: Path, name: str, value: object, fact: str):
    """What the file says of itself must be what the manifest says, whatever the sums are."""
    edit_mark(copy / "folder" / "model.safetensors", lambda mark: mark.update({name: value}))
    vouch(copy / "folder")
    (found,) = problems(copy / "folder")
    assert found.startswith(f"folder/model.safetensors: {fact}")


def test_no_metadata_at_all(copy: Path):
    """A file without our mark is not what ema-cli wrote."""
    edit_header(copy / SINGLE, lambda header: header.pop("__metadata__"))
    vouch(copy / SINGLE)
    assert problems(copy / SINGLE) == [f"{SINGLE}: has no metadata that say how it was averaged"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite(copy: Path, dtype: torch.dtype, value: float):
    """NaN and infinity in an averaged tensor are named with the first element, unless the manifest allows them."""
    wrong = torch.ones(5, 7, dtype=dtype)
    wrong[2, 3] = wrong[4, 6] = value
    name = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "complex64": "C64"}
    mark = read_metadata(copy / SINGLE)
    save_file({"a": torch.ones(3), "count": torch.tensor(-1), "layer": wrong, "z": torch.ones(2)}, copy / SINGLE, mark)

    def edit(manifest: dict[str, Any]) -> None:
        rows = [("a", "F32", [3], 4), ("count", "I64", [], 8), ("z", "F32", [2], 4)]
        rows.append(("layer", name[str(dtype).removeprefix("torch.")], [5, 7], dtype.itemsize))
        manifest["tensors"] = [
            {"name": tensor, "dtype": kind, "shape": shape, "bytes": size * torch.Size(shape).numel(),
             "averaged": kind != "I64", "why": None, "non_finite": False}
            for tensor, kind, shape, size in rows
        ]  # fmt: skip

    vouch(copy / SINGLE, edit)
    assert problems(copy / SINGLE) == [f"{SINGLE}: 'layer' is not finite at element 17 and 1 more"]
    vouch(copy / SINGLE, lambda manifest: manifest["tensors"][-1].update(non_finite=True))
    assert problems(copy / SINGLE) == []


def read_metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    found: dict[str, str] = header["__metadata__"]
    return found


def test_values_across_blocks(copy: Path):
    """A file of many blocks is read whole: elements at the ends of blocks and of tensors are looked at."""
    count = (3 << 20) // 4 + 5
    big = torch.zeros(count)
    wrong = [0, (1 << 18) - 30, 1 << 18, count - 1]
    big[wrong] = float("inf")
    mark = read_metadata(copy / SINGLE)
    save_file({"big": big, "small": torch.full((3,), float("nan"))}, copy / SINGLE, mark)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["tensors"] = [
            {"name": tensor, "dtype": "F32", "shape": [size], "bytes": 4 * size, "averaged": True, "why": None,
             "non_finite": False} for tensor, size in (("big", count), ("small", 3))
        ]  # fmt: skip

    vouch(copy / SINGLE, edit)
    assert problems(copy / SINGLE) == [
        f"{SINGLE}: 'big' is not finite at element 0 and 3 more",
        f"{SINGLE}: 'small' is not finite at element 0 and 2 more",
    ]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"dtype": "I32"}, f"{SINGLE}: 'layer.bias' is F32 [4], but I32 [4] in {SINGLE_MANIFEST}"),
        ({"shape": [2, 2]}, f"{SINGLE}: 'layer.bias' is F32 [4], but F32 [2, 2] in {SINGLE_MANIFEST}"),
        ({"bytes": 17}, f"{SINGLE}: 'layer.bias' takes 16 bytes, but 17 in {SINGLE_MANIFEST}"),
    ],
)
def test_tensors_of_another_kind(copy: Path, change: dict[str, object], fact: str):
    """Each tensor has the dtype, the shape and the size that the manifest says."""
    vouch(copy / SINGLE, lambda manifest: manifest["tensors"][0].update(change))
    assert problems(copy / SINGLE) == [fact]


def test_tensors_of_other_names(copy: Path):
    """No tensor is missing, and none is there besides."""
    vouch(copy / SINGLE, lambda manifest: manifest["tensors"][0].update(name="other"))
    assert problems(copy / SINGLE) == [
        f"{SINGLE}: 'layer.bias' is not listed in {SINGLE_MANIFEST}",
        f"{SINGLE_MANIFEST}: lists 'other', which is in no file",
    ]


@pytest.mark.parametrize("kind", ["inputs", "outputs", "tensors"])
def test_a_manifest_that_lists_something_twice(copy: Path, kind: str):
    """Each input, file and tensor is in a manifest once."""
    vouch(copy / SINGLE, lambda manifest: manifest[kind].append(manifest[kind][0]))
    fact = f"{SINGLE_MANIFEST}: lists one of its {kind} twice"
    assert fact in problems(copy / SINGLE)
    if kind == "inputs":
        assert against(copy / SINGLE, copy / "pt").problems[-1].endswith("the manifest lists an input twice")


def test_a_file_that_only_one_list_knows(copy: Path):
    """Manifest and sums list the same files."""
    (copy / "folder" / "more.txt").write_text("x")
    sums = copy / "folder" / SUMS
    sums.write_text(f"{sums.read_text()}{hashlib.sha256(b'x').hexdigest()}  more.txt\n")
    assert problems(copy / "folder") == [f"folder/more.txt: is not listed in {MANIFEST}"]


def test_shards_without_an_index(copy: Path):
    """Several files of weights need an index, or nothing loads them."""
    name = "model.safetensors.index.json"
    (copy / "shards" / name).unlink()
    vouch(copy / "shards", lambda manifest: manifest.update(
        outputs=[each for each in manifest["outputs"] if each["name"] != name]
    ))  # fmt: skip
    assert problems(copy / "shards") == ["shards: holds 2 shards, but no model.safetensors.index.json"]


def test_an_index_that_says_otherwise(copy: Path):
    """Index and shards agree on which tensor is where."""
    path = copy / "shards" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    others = set(index["weight_map"].values()) - {index["weight_map"][first]}
    index["weight_map"][first] = others.pop()
    path.write_text(json.dumps(index))
    vouch(copy / "shards")
    (found,) = problems(copy / "shards")
    assert found.startswith(f"shards/{path.name}: ")
    assert first in found


def test_the_same_is_said_for_any_number_of_threads(copy: Path):
    """Problems come in one order."""
    for name in ("README.md", "model-00002-of-00002.safetensors", "config.json", "extra"):
        (copy / "shards" / name).write_bytes(b"x")
    (published,) = find_averages([copy / "shards"])
    once = verify(published, threads=1).problems
    assert len(once) > 5
    assert all(verify(published, threads=threads).problems == once for threads in (2, 3, 16))


def test_each_byte_is_read_once(made: Path):
    """What is told as progress comes to the size of all files."""
    told: list[tuple[int, int]] = []
    (published,) = find_averages([made / "shards"])
    found = verify(published, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (found.nbytes, found.nbytes)

"""Averages checked by their sums and manifests: each check fails for its own reason, and names what it is about."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.cli.command_line import VerifyOptions
from ema_cli.errors import CheckpointError, NonFiniteError, UsageError
from ema_cli.release.published import Published, find_averages
from ema_cli.release.recompute import SAMPLE_ELEMENTS, verify_against
from ema_cli.release.verify import Verified, verify
from tests.conftest import Outcome, write_hf_run, write_torch_run
from tests.loaded import loaded_by

MANIFEST, SUMS = "ema-manifest.json", "SHA256SUMS"
SINGLE, SINGLE_MANIFEST, SINGLE_SUMS = "one.safetensors", "one.safetensors.manifest.json", "one.safetensors.sha256"
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with averages of every form, and the runs that they are of."""
    root = tmp_path_factory.mktemp("made")
    write_hf_run(root / "hf", [100, 200, 300])
    write_torch_run(root / "pt", [100, 200, 300])
    for arguments in (
        ["hf", "-o", "folder"],
        ["hf", "-o", "shards", "--max-shard-size", "50B"],
        ["pt", "-o", SINGLE],
        ["pt", "-o", "one.pt", "--dtype", "bfloat16"],
        ["pt", "-o", "several", "--half-life", "20ba", "--copy", "norm*"],
    ):
        command = [sys.executable, "-m", "ema_cli", "average", *arguments, "--half-life", "50ba", "-q"]
        subprocess.run(command, cwd=root, check=True, timeout=120)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same once more, to be damaged."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def check(path: Path) -> Verified:
    """Verify the only average at a path."""
    (published,) = find_averages([path])
    return verify(published, threads=2)


def problems(path: Path) -> list[str]:
    """Return what does not hold of the only average at a path, its files by name."""
    return [each.replace(f"{path.parent}/", "") for each in check(path).problems]


def flip(path: Path, at: int = -1) -> None:
    """Turn one bit of a byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def begin_of(path: Path, tensor: str) -> int:
    """Return the byte at which a tensor of a single file begins."""
    located = check(path).snapshot.opened[path.name].tensors.locate(tensor)
    assert located is not None
    return located[1]


def vouch(path: Path, edit: Edit = lambda manifest: None) -> None:
    """Edit the manifest of an average, and make it and the sums those of the files as they are."""
    published = Published(path, path.is_dir())
    manifest = json.loads(published.manifest.read_text())
    edit(manifest)
    for each in manifest["outputs"]:
        file = published.folder / each["name"]
        if file.exists():
            each["bytes"] = file.stat().st_size
            each["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    published.manifest.write_text(json.dumps(manifest))
    sums = {each["name"]: each["sha256"] for each in manifest["outputs"]}
    sums[published.manifest.name] = hashlib.sha256(published.manifest.read_bytes()).hexdigest()
    published.sums.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def edit_header(path: Path, edit: Edit) -> None:
    """Edit the header of a safetensors file."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def edit_mark(path: Path, edit: Edit) -> None:
    """Edit what a safetensors file says of how it was averaged."""

    def change(header: dict[str, Any]) -> None:
        mark = json.loads(header["__metadata__"]["ema_cli"])
        edit(mark)
        header["__metadata__"]["ema_cli"] = json.dumps(mark)

    edit_header(path, change)


@pytest.mark.parametrize(
    ("name", "files", "tensors"),
    [("folder", 5, 3), ("shards", 7, 3), (SINGLE, 2, 3), ("one.pt", 2, 3)],
)
def test_an_average_is_verified_as_it_was_written(made: Path, name: str, files: int, tensors: int):
    """An average is verified as it was written: a folder, shards, a single file of either container."""
    found = check(made / name)
    assert found.problems == ()
    assert (found.files, found.tensors) == (files, tensors)


def test_several_are_verified_one_by_one(made: Path):
    """A folder of several averages is all of them."""
    found = find_averages([made / "several", made / SINGLE])
    assert [each.path.name for each in found] == ["ema-20ba.safetensors", "ema-50ba.safetensors", SINGLE]
    assert not any(verify(each).problems for each in found)


def test_one_without_a_manifest_among_several_is_named(copy: Path):
    """What lies among averages that are vouched for, is none unless it is vouched for, too."""
    shutil.copy(copy / SINGLE, copy / "several" / "other.safetensors")
    found = [verify(each) for each in find_averages([copy / "several"])]
    assert [bool(each.problems) for each in found] == [False, False, True]


def test_a_name_of_the_manifest_stands_for_the_average(made: Path):
    """Whoever names the manifest or the sums of a file, means the file."""
    for name in (SINGLE, SINGLE_MANIFEST, SINGLE_SUMS):
        assert [each.path.name for each in find_averages([made / name])] == [SINGLE]


@pytest.mark.parametrize("name", [MANIFEST, SUMS, "model.safetensors"])
def test_a_file_of_a_folder_stands_for_it(made: Path, name: str):
    """What is vouched for is the folder, whichever of its files is named."""
    assert find_averages([made / "folder" / name, made / "folder"]) == [Published(made / "folder", is_folder=True)]


def test_without_manifest_and_sums_nothing_is_verified(copy: Path):
    """An average without a manifest says so, and how to get one."""
    (copy / SINGLE_MANIFEST).unlink()
    (copy / SINGLE_SUMS).unlink()
    (found,) = problems(copy / SINGLE)
    assert f"{SINGLE}: has neither a manifest ({SINGLE_MANIFEST}) nor sums" in found
    assert "--no-manifest" in found
    assert "hf: has neither a manifest" in problems(copy / "hf")[0]


def test_nothing_at_all_is_a_usage_error(tmp_path: Path):
    """A path at which there is nothing is not an average that does not hold."""
    with pytest.raises(UsageError, match="does not exist"):
        find_averages([tmp_path / "nothing"])


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "tokenizer.json"])
def test_one_bit_of_a_file_in_a_folder(copy: Path, name: str):
    """A bit that turned in any file of a folder is found by both lists."""
    flip(copy / "folder" / name)
    found = problems(copy / "folder")
    assert all(each.startswith(f"folder/{name}: its sha256 is ") for each in found)
    assert [each.rpartition(" ")[2] for each in found] == [SUMS, MANIFEST]


@pytest.mark.parametrize("name", [SINGLE, "one.pt"])
def test_one_bit_of_a_single_file(copy: Path, name: str):
    """Damage is not taken for a stale manifest."""
    flip(copy / name, begin_of(copy / name, "layer.weight"))
    found = problems(copy / name)
    assert [each.partition(" is ")[0] for each in found if "sha256" in each] == [f"{name}: its sha256"] * 2
    assert not any("is of another" in each for each in found)


def test_one_bit_of_a_manifest(copy: Path):
    """The sums vouch for the manifest, too."""
    path = copy / "folder" / MANIFEST
    path.write_text(path.read_text().replace('"warnings"', '"warnings" '))
    (found,) = problems(copy / "folder")
    assert found.startswith(f"folder/{MANIFEST}: its sha256 is ")


def test_one_bit_of_the_sums(copy: Path):
    """A sum that was changed is not that of the manifest, nor of the file."""
    path = copy / "folder" / SUMS
    path.write_text(re.sub(r"^\w{64}  model", f"{'0' * 64}  model", path.read_text(), flags=re.MULTILINE))
    found = problems(copy / "folder")
    assert f"folder/model.safetensors: has other sums in {SUMS} and in {MANIFEST}" in found
    assert any(each.endswith(f"but 000000000000... in {SUMS}") for each in found)


def test_sums_that_are_none(copy: Path):
    """What sha256sum would not read is named with its line."""
    (copy / "folder" / SUMS).write_text("not a sum\n")
    assert f"folder/{SUMS}: line 1 is no sum of a file of its own" in problems(copy / "folder")


def test_sums_of_nothing(copy: Path):
    """Sums that were emptied vouch for nothing, whatever the manifest says."""
    (copy / "folder" / SUMS).write_text("")
    assert problems(copy / "folder") == [f"folder/{SUMS}: lists nothing"]


@pytest.mark.parametrize("name", ["folder/model.safetensors", SINGLE, "one.pt"])
def test_a_file_cut_short(copy: Path, name: str):
    """Of a file that was cut short, size and sum are wrong, and its reader says so."""
    path = copy / name
    size = path.stat().st_size
    os.truncate(path, size - 4)
    found = problems(path if path.parent == copy else path.parent)
    assert any(f"holds {size - 4} bytes, but {size} in" in each for each in found)
    assert any("sha256" in each for each in found)
    assert any("cut short" in each or "zip" in each for each in found)
    assert not any("in no file" in each for each in found)


@pytest.mark.parametrize("name", ["extra.bin", "model-00001-of-00002.safetensors", "deep/er/code.py"])
def test_a_file_that_is_not_listed(copy: Path, name: str):
    """Nothing that could be loaded may lie in a folder without being listed."""
    (copy / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / "folder" / name).write_text("x")
    assert problems(copy / "folder") == [f"folder/{name}: is not listed in {SUMS}"]


def test_a_link_that_is_not_listed(copy: Path):
    """A link to a folder is no way around that."""
    (copy / "folder" / "linked").symlink_to(copy / "hf")
    assert problems(copy / "folder") == [f"folder/linked: is not listed in {SUMS}"]


def test_hidden_files_are_left_alone(copy: Path):
    """Git and the Hub keep hidden files of their own in a folder."""
    for name in (".gitattributes", ".git/config", ".cache/huggingface/x.lock"):
        (copy / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / "folder" / name).write_text("x")
    assert problems(copy / "folder") == []


@pytest.mark.parametrize(("name", "lister"), [("tokenizer.json", SUMS), ("model.safetensors", SUMS)])
def test_a_missing_file(copy: Path, name: str, lister: str):
    """What is listed must be there."""
    (copy / "folder" / name).unlink()
    assert problems(copy / "folder") == [f"folder/{name}: is missing, but {lister} lists it"]


def test_manifest_and_sums_without_weights(copy: Path):
    """A manifest beside no file is said to list what is missing."""
    (copy / SINGLE).unlink()
    assert problems(copy / SINGLE) == [f"{SINGLE}: is missing, but {SINGLE_SUMS} lists it"]


@pytest.mark.parametrize("name", [SINGLE_MANIFEST, SINGLE_SUMS])
def test_only_one_of_manifest_and_sums(copy: Path, name: str):
    """Both belong to an average."""
    (copy / name).unlink()
    assert f"{name}: is missing" in problems(copy / SINGLE)


def test_names_lead_nowhere_else(copy: Path):
    """A name in the sums that leads out of the folder is never opened: it is missing."""
    (copy / "secret").write_text("x")
    sums = copy / "folder" / SUMS
    sums.write_text(sums.read_text() + f"{hashlib.sha256(b'x').hexdigest()}  ../secret\n")
    assert problems(copy / "folder") == [f"folder/../secret: is missing, but {SUMS} lists it"]


def test_swapped_shards(copy: Path):
    """Two shards that changed their names are both named, and so is the index."""
    one, other = sorted((copy / "shards").glob("model-*.safetensors"))[:2]
    one.rename(copy / "swap")
    other.rename(one)
    (copy / "swap").rename(other)
    found = problems(copy / "shards")
    for each in (one, other):
        assert any(text.startswith(f"shards/{each.name}: its sha256 is ") for text in found)
    assert any(re.search("is in the (shard|index) only", text) for text in found)


def test_swapped_averages(copy: Path):
    """Of two averages that changed places, manifest and sums are those of another file."""
    one, other = copy / "several" / "ema-20ba.safetensors", copy / "several" / "ema-50ba.safetensors"
    one.rename(copy / "swap")
    other.rename(one)
    (copy / "swap").rename(other)
    found = problems(one)
    assert found[0] == (
        f"{one.name}: {one.name}.manifest.json and {one.name}.sha256 are of another {one.name}; "
        "write it again with --force"
    )
    assert any("half_life 50ba" in each and "half_life 20ba" in each for each in found)


def test_a_manifest_of_another_file(copy: Path):
    """What a killed run leaves is named: a new manifest beside the old file and its sums."""
    shutil.copy(copy / "several" / "ema-20ba.safetensors.manifest.json", copy / SINGLE_MANIFEST)
    text = (copy / SINGLE_MANIFEST).read_text().replace("ema-20ba.safetensors", SINGLE)
    (copy / SINGLE_MANIFEST).write_text(text)
    assert problems(copy / SINGLE)[0] == (
        f"{SINGLE}: {SINGLE_MANIFEST} is of another {SINGLE}; write it again with --force"
    )


def test_sums_of_another_file(copy: Path):
    """Old sums beside a new file and its manifest are named, too."""
    text = (copy / SINGLE_SUMS).read_text()
    (copy / SINGLE_SUMS).write_text(re.sub(r"^\w{64}(?=  one.safetensors$)", "0" * 64, text, flags=re.MULTILINE))
    assert problems(copy / SINGLE)[0] == f"{SINGLE}: {SINGLE_SUMS} is of another {SINGLE}; write it again with --force"


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
    assert problems(copy / "shards") == ["shards: holds 2 files of weights, but no index of them"]


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


def against(path: Path, *checkpoints: Path, sample: bool = False) -> Verified:
    """Verify an average, and compare it with what checkpoints give."""
    return verify_against(check(path), checkpoints, sample=sample)


@pytest.mark.parametrize(
    ("name", "run"), [("folder", "hf"), ("shards", "hf"), (SINGLE, "pt"), ("one.pt", "pt"), ("several", "pt")]
)
def test_averaged_anew_it_is_the_same(made: Path, name: str, run: str):
    """Averages of every form are what their checkpoints give."""
    for each in find_averages([made / name]):
        found = verify_against(verify(each), [made / run])
        assert found.problems == ()
        assert found.against is not None
        assert (found.against.checkpoints, found.against.tensors, found.against.bytes_read) == (3, 3, 200)


@pytest.mark.parametrize("name", ["folder", SINGLE, "one.pt"])
def test_bytes_that_the_checkpoints_do_not_give(copy: Path, name: str):
    """Bytes that were changed, with all sums made anew, are named: tensor, how many, and the first."""
    weights = copy / name / "model.safetensors" if name == "folder" else copy / name
    opened = check(copy / name).snapshot.opened[weights.name].tensors
    located, itemsize = opened.locate("layer.weight"), opened.specs["layer.weight"].dtype.itemsize
    assert located is not None
    flip(weights, located[1] + 3 * itemsize)
    flip(weights, located[1] + 5 * itemsize)
    vouch(copy / name)
    found = against(copy / name, copy / ("hf" if name == "folder" else "pt"))
    assert found.problems == (
        f"{weights}: 'layer.weight' is not what the checkpoints give: 2 bytes differ, the first in element 3",
    )
    assert found.against is not None
    assert (found.against.tensors_different, found.against.bytes_different) == (1, 2)


def test_side_files_that_the_checkpoints_do_not_give(copy: Path):
    """Configuration and tokenizer are compared, too."""
    (copy / "folder" / "tokenizer.json").write_text("[]")
    vouch(copy / "folder")
    assert against(copy / "folder", copy / "hf").problems == (
        f"{copy / 'folder' / 'tokenizer.json'}: is not what the newest checkpoint gives",
    )


def test_files_that_the_checkpoints_do_not_give(copy: Path):
    """A file that was added, and listed everywhere, is nothing that the checkpoints give."""
    (copy / "folder" / "code.py").write_text("x")
    edit_mark(copy / "folder" / "model.safetensors", lambda mark: mark["files"].insert(1, "code.py"))
    vouch(copy / "folder", lambda manifest: manifest["outputs"].append({"name": "code.py", "bytes": 0, "sha256": ""}))
    found = against(copy / "folder", copy / "hf").problems
    assert f"{copy / 'folder' / 'code.py'}: is nothing that the newest checkpoint gives" in found


@pytest.mark.parametrize("sample", [True, False])
def test_a_header_that_the_checkpoints_do_not_give(copy: Path, sample: bool):
    """More in the metadata than ema-cli writes is found, though every tensor and every sum is right."""
    edit_header(copy / SINGLE, lambda header: header["__metadata__"].update(more="x"))
    vouch(copy / SINGLE)
    assert check(copy / SINGLE).problems == ()
    (found,) = against(copy / SINGLE, copy / "pt", sample=sample).problems
    assert found.startswith(f"{copy / SINGLE}: holds the tensors that the checkpoints give, but something else around")


@pytest.mark.parametrize("text", [b"archive/version", b"little"])
def test_an_archive_that_the_checkpoints_do_not_give(copy: Path, text: bytes):
    """Of a file of torch's the records, before and behind the tensors, are compared, too."""
    data = (copy / "one.pt").read_bytes()
    flip(copy / "one.pt", data.rindex(text) if text != b"little" else data.index(text))
    vouch(copy / "one.pt")
    found = check(copy / "one.pt")
    again = against(copy / "one.pt", copy / "pt")
    assert again.problems
    assert found.problems or "something else around them" in again.problems[0]


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda told: told.update(effective_checkpoints=9.5), "says effective_checkpoints 9.5, but"),
        (lambda told: told.update(mean_age="1ba"), 'says mean_age "1ba", but'),
        (lambda told: told.update(approximation={"relative_error": 0, "least_error": 0}), "says approximation {"),
        (lambda told: told["inputs"][1].update(bytes=1), "says inputs[1].bytes 1, but"),
        (lambda told: told["inputs"][1].update(format="x"), 'says inputs[1].format "x", but'),
        (lambda told: told["inputs"][1].update(trainer="x"), 'says inputs[1].trainer "x", but'),
        (lambda told: told["tensors"][0].update(averaged=False, why="integer"), ".averaged false, but"),
        (lambda told: told["tensors"][0].update(non_finite=True), ".non_finite true, but"),
        (lambda told: told["recipe"].update(format="pt"), 'says recipe.format "pt", but'),
        (lambda told: told["recipe"].update(law="60ba"), "law is '60ba', but what it says of it is 50ba"),
    ],
)
def test_a_manifest_that_the_checkpoints_do_not_give(copy: Path, edit: Edit, fact: str):
    """What a manifest says is what one made anew says, though all sums were made to fit."""
    vouch(copy / SINGLE, edit)
    assert check(copy / SINGLE).problems == ()
    (found,) = against(copy / SINGLE, copy / "pt").problems
    assert found.startswith(f"{copy / SINGLE_MANIFEST}: ")
    assert fact in found


def test_sums_of_inputs_that_the_checkpoints_do_not_give(copy: Path, cli: Callable[..., Outcome], tmp_path: Path):
    """The sums that --checksum left in a manifest are made anew; a sample, which reads less, passes over them."""
    out = tmp_path / "summed.safetensors"
    assert cli("average", copy / "pt", "--half-life", "50ba", "--checksum", "-o", out, "-q").code == 0
    assert against(out, copy / "pt").problems == ()
    vouch(out, lambda manifest: manifest["inputs"][2]["blocks"].__setitem__(0, "0" * 64))
    (found,) = against(out, copy / "pt").problems
    assert 'says inputs[2].blocks[0] "000' in found
    assert against(out, copy / "pt", sample=True).problems == ()


def test_a_checkpoint_that_has_changed(copy: Path):
    """A checkpoint of which another was made is named: that is no fault of the average."""
    path = copy / "pt/step-200.pt"
    saved = torch.load(path)
    saved["model"]["layer.bias"] += 1
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=r"step-200\.pt: has changed since it was averaged"):
        against(copy / SINGLE, copy / "pt")


def test_a_checkpoint_that_is_missing(copy: Path):
    """A checkpoint that is missing is named."""
    (copy / "pt/step-200.pt").unlink()
    with pytest.raises(CheckpointError, match=r"'step-200\.pt', which entered the average, is missing"):
        against(copy / SINGLE, copy / "pt")


def test_a_changed_checkpoint_hides_no_problem(copy: Path):
    """Where something else does not hold, that stays what is said first."""
    (copy / "pt/step-200.pt").unlink()
    flip(copy / SINGLE)
    found = against(copy / SINGLE, copy / "pt").problems
    assert "its sha256 is" in found[0]
    assert found[-1].startswith("not compared with the checkpoints: ")


def test_weights_that_the_law_does_not_give(copy: Path):
    """Weights that were changed in manifest and metadata, with all sums made anew, are not those of the law."""
    edit_mark(copy / SINGLE, lambda mark: mark["checkpoints"][1].__setitem__(2, 0.5))
    vouch(copy / SINGLE, lambda manifest: manifest["inputs"][1].update(weight=0.5))
    assert check(copy / SINGLE).problems == ()
    (found,) = against(copy / SINGLE, copy / "pt").problems
    assert found.startswith(f"{copy / SINGLE_MANIFEST}: the manifest's weights are not those that 50ba gives")


def test_a_sample_reads_little(tmp_path: Path, cli: Callable[..., Outcome]):
    """A sample is the beginning of each tensor, and finds what differs there only."""
    for step in (1, 2, 3):
        tensors = {"big": torch.full((SAMPLE_ELEMENTS * 4,), float(step)), "small": torch.ones(7) * step}
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    done = cli("average", "run", "--half-life", "2ba", "-o", "big.safetensors", "-q")
    assert done.code == 0, done
    out, run = tmp_path / "big.safetensors", tmp_path / "run"
    whole, part = against(out, run).against, against(out, run, sample=True).against
    assert whole is not None
    assert part is not None
    assert whole.bytes_read == 3 * 4 * (4 * SAMPLE_ELEMENTS + 7)
    assert part.bytes_read == 3 * 4 * (SAMPLE_ELEMENTS + 7)
    begin = begin_of(out, "big")
    flip(out, begin + 4 * SAMPLE_ELEMENTS)  # just behind it
    vouch(out)
    assert against(out, run, sample=True).problems == ()
    assert "the first in element 65536" in against(out, run).problems[0]
    flip(out, begin + 4 * SAMPLE_ELEMENTS - 4)
    vouch(out)
    assert "1 byte differs, the first in element 65535" in against(out, run, sample=True).problems[0]


def test_non_finite_checkpoints_are_an_error(tmp_path: Path, cli: Callable[..., Outcome]):
    """NaN that was let through once is, the same again; a manifest that does not say so makes it an error."""
    write_torch_run(tmp_path / "run", [1, 2])
    saved = torch.load(tmp_path / "run/step-2.pt")
    saved["model"]["layer.bias"][1] = float("nan")
    torch.save(saved, tmp_path / "run/step-2.pt")
    done = cli("average", "run", "--half-life", "2ba", "-o", "out.safetensors", "-q", "--allow-non-finite")
    assert done.code == 0, done
    out = tmp_path / "out.safetensors"
    assert against(out, tmp_path / "run").problems == ()
    vouch(out, lambda manifest: manifest["recipe"].update(allow_non_finite=False))
    with pytest.raises(NonFiniteError, match=r"step-2\.pt: 'layer\.bias' is not finite at element 1"):
        against(out, tmp_path / "run")


def test_the_command_says_what_holds(made: Path, cli: Callable[..., Outcome]):
    """One line for each average on stdout, nothing else."""
    done = cli("verify", "folder", "several", cwd=made)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert re.fullmatch(r"folder: verified: 5 files, 3 tensors, [\d.]+ kB", lines[0])
    assert [line.partition(":")[0] for line in lines[1:]] == [
        f"several/ema-{half_life}.safetensors" for half_life in ("20ba", "50ba")
    ]


def test_the_command_says_what_does_not_hold(copy: Path, cli: Callable[..., Outcome]):
    """Problems on stderr, then the error with exit code 6; what holds is still said."""
    flip(copy / "folder" / "config.json")
    done = cli("verify", SINGLE, "folder", cwd=copy)
    assert done.code == 6
    assert re.fullmatch(r"one.*: verified: .*\nfolder: does not hold: 2 problems\n", done.out)
    assert done.err.count("folder/config.json: its sha256 is") == 2
    assert "error: folder: does not hold: 2 problems" in done.err


def test_only_the_first_problems_are_told(copy: Path, cli: Callable[..., Outcome]):
    """People see twenty problems and how many more there are; JSON has all of them."""
    for number in range(30):
        (copy / "folder" / f"extra-{number:02}").write_text("x")
    done = cli("verify", "folder", cwd=copy)
    assert done.err.count("is not listed") == 20
    assert "and 10 more" in done.err
    told = cli("verify", "folder", "--json", cwd=copy).json
    assert len(told["outputs"][0]["problems"]) == 30


def test_json_has_outputs_and_the_error(copy: Path, cli: Callable[..., Outcome]):
    """One envelope: every average with its problems, and the error where one does not hold."""
    (copy / "folder" / "extra").write_text("x")
    done = cli("verify", SINGLE, "folder", "--json", "--against", "pt", "--against", "hf", "--sample", cwd=copy)
    told = done.json
    assert done.code == 6
    assert (told["schema_version"], told["command"]) == (1, "verify")
    assert [(each["path"], each["ok"]) for each in told["outputs"]] == [(SINGLE, True), ("folder", False)]
    assert told["outputs"][1]["problems"] == [f"folder/extra: is not listed in {SUMS}"]
    assert told["outputs"][0]["against"] == {
        "checkpoints": 3, "tensors": 3, "most_elements": SAMPLE_ELEMENTS, "bytes_read": 200,
        "tensors_different": 0, "bytes_different": 0,
    }  # fmt: skip
    assert told["error"]["code"] == 6
    assert told["error"]["message"] == f"folder/extra: is not listed in {SUMS}"
    assert "error" not in cli("verify", SINGLE, "--json", cwd=copy).json


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        ([], 2, "which average?"),
        (["nothing"], 2, "nothing: does not exist"),
        ([SINGLE, "--sample"], 2, "--sample: of what?"),
        ([SINGLE, "--against", "nowhere"], 2, "--against: nowhere does not exist"),
        ([SINGLE, "--against", "hf"], 3, "'step-100.pt', which entered the average, is missing"),
        (["hf"], 6, "hf: has neither a manifest"),
    ],
)
def test_a_missing_file_has_the_exit_code_that_it_has_elsewhere(
    made: Path, cli: Callable[..., Outcome], arguments: list[str], code: int, fact: str
):
    """What is missing on the way has the exit code that it has elsewhere."""
    done = cli("verify", *arguments, cwd=made)
    assert done.code == code
    assert fact in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(copy: Path):
    """What only this user cannot read, is no fault of the average."""
    (copy / "folder" / "config.json").chmod(0)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be opened"):
        check(copy / "folder")


def test_the_examples_run(made: Path, cli: Callable[..., Outcome], tmp_path: Path):
    """The examples in the help do what they show."""
    shutil.copytree(made / "pt", tmp_path / "ckpts")
    assert cli("average", "ckpts", "--half-life", "50ba", "-o", "release.safetensors", "-q").code == 0
    examples = re.findall(r"ema-cli (verify .+)", VerifyOptions.EXAMPLES)
    assert len(examples) == 2
    for each in examples:
        done = cli(*each.split())
        assert done.code == 0, done


@pytest.mark.slow
def test_help_loads_no_numpy_and_verify_no_torch(made: Path):
    """Help loads no numpy, and to verify takes no torch."""
    assert not loaded_by(["verify", "--help"], made) & {"torch", "numpy", "safetensors", "json"}
    for arguments in (["folder"], ["one.pt"], [SINGLE, "--against", "pt"]):
        loaded = loaded_by(["verify", *arguments], made)
        assert "torch" not in loaded
        assert "numpy" in loaded


def test_sha256sum_agrees(made: Path):
    """The sums are those that the usual tool checks."""
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    for folder, sums in ((made / "folder", SUMS), (made, SINGLE_SUMS)):
        subprocess.run([tool, "-c", "--strict", "--quiet", sums], cwd=folder, check=True)

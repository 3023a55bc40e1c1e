"""Averages as files of torch's: torch reads them, strictly and mapped, bit for bit what safetensors hold."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.serialization import config

from ema_cli import averaging
from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.errors import OutputError, RunError, VerificationError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.mark import RECORD
from ema_cli.formats.torch_save import writer as torch_layout
from ema_cli.formats.torch_save.writer import TorchOutput, lay_out_torch_file
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import open_run
from ema_cli.storage.output_stream import OutputStream
from ema_cli.writing import files
from ema_cli.writing.target import parse_target
from tests.conftest import Cli, oracle, write_torch_run
from tests.formats.containers import plain_tensors, strided_tensors

PACKED = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float4_e2m1fn_x2,
)  # fmt: skip


def plan_of(folder: Path, half_life: str = "2ba", copy: Sequence[str] = (), **options: Any) -> Plan:
    return make_plan(open_run([folder], copy=copy), Recipe(half_life=Time.parse(half_life), **options))


def average(plan: Plan, path: Path, **options: Any) -> averaging.Result:
    return averaging.average(plan, parse_target(path), **options)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether type, shape and every bit are equal."""
    bits = [each.contiguous().flatten().view(torch.uint8) for each in (one, other)]
    return one.dtype is other.dtype and one.shape == other.shape and torch.equal(*bits)


@pytest.fixture(params=[False, True], ids=["offsets read", "offsets computed"])
def offsets(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let torch read where a record begins, or compute it from the sizes of those before."""
    with config.patch("load.calculate_storage_offsets", request.param):
        yield


def write_every_kind(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Write two checkpoints with a tensor of each dtype, as torch stores them: tied, strided, empty; odd names."""
    folder.mkdir()
    saved = []
    for step in (1, 2):
        tensors = plain_tensors() | strided_tensors()
        del tensors["not.finite"]
        bits = torch.randint(0, 255, (3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
        tensors |= {f"packed.{dtype}": bits.view(dtype) for dtype in PACKED}
        tensors = {
            name: tensor.detach() * step if tensor.is_floating_point() and tensor.itemsize > 1 else tensor
            for name, tensor in tensors.items()
        }
        torch.save({"model": tensors, "step": step}, folder / f"step-{step}.pt")
        saved.append(tensors)
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_torch_reads_what_safetensors_hold(tmp_path: Path, offsets: None, mmap: bool):
    """Every dtype and edge shape, any name: strictly loaded, in the model's order, bit for bit as in safetensors."""
    saved = write_every_kind(tmp_path / "run")
    for name in ("x.pt", "x.safetensors"):
        average(plan_of(tmp_path / "run", copy=["packed.*"]), tmp_path / name)
    found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mmap)
    expected = load_file(tmp_path / "x.safetensors")
    assert type(found) is OrderedDict
    assert list(found) == list(saved[-1])
    assert found.keys() == expected.keys()
    assert {name for name in found if not equal(found[name], expected[name])} == set()
    assert {tensor.dtype for tensor in found.values()} >= {*PACKED, torch.uint16, torch.complex64, torch.bool}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())
    if mmap:
        assert {tensor.data_ptr() % 64 for tensor in found.values() if tensor.numel()} == {0}


def test_complex128_has_a_place(tmp_path: Path):
    """What safetensors cannot hold is averaged in complex128; without such a file the error says how."""
    folder = tmp_path / "run"
    folder.mkdir()
    saved = [torch.randn(5, 2, dtype=torch.complex128) for _ in range(2)]
    for step, tensor in enumerate(saved, 1):
        torch.save({"model": {"w": tensor}, "step": step}, folder / f"step-{step}.pt")
    plan = plan_of(folder)
    average(plan, tmp_path / "x.pth")
    found = torch.load(tmp_path / "x.pth", weights_only=True)["w"]
    expected = sum(weight * tensor for weight, tensor in zip(plan.weights, saved, strict=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    with pytest.raises(OutputError, match="complex128") as refused:
        average(plan, tmp_path / "x.safetensors")
    assert refused.value.hint == "write one file of torch's: target='NAME.pt'"


@pytest.mark.slow
def test_the_archive_is_whole(tmp_path: Path):
    """Python's own reader finds every checksum right, and the records that torch writes, and one of ours."""
    write_every_kind(tmp_path / "run")
    average(plan_of(tmp_path / "run", copy=["packed.*"]), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        names = [name.removeprefix("archive/") for name in archive.namelist()]
    out = io.BytesIO()
    torch.save({}, out)
    theirs = [name.removeprefix("archive/") for name in zipfile.ZipFile(out).namelist()]
    tensors = [name for name in names if name.startswith("data/")]
    assert tensors == [f"data/{number}" for number in range(len(tensors))]
    assert [*theirs[:4], *tensors, "version", RECORD] == names
    assert {*theirs} - {*names} == {".data/serialization_id"}  # which only logs tell


@pytest.mark.slow
def test_bytes_depend_on_the_average_alone(tmp_path: Path):
    """Threads, memory, the file's name and the other averages of one pass do not show."""
    write_every_kind(tmp_path / "run")
    plans = [plan_of(tmp_path / "run", law, copy=["packed.*"]) for law in ("2ba", "5ba")]
    plans[1] = make_plan(plans[0].run, plans[1].recipe)
    average(plans[0], tmp_path / "one.pt", threads=1)
    average(plans[0], tmp_path / "four.pth", threads=4)
    averaging.average(plans, parse_target(tmp_path / "all" / "{half_life}.pt"), threads=3)
    one = (tmp_path / "one.pt").read_bytes()
    assert (tmp_path / "four.pth").read_bytes() == one
    assert (tmp_path / "all" / "2ba.pt").read_bytes() == one
    other = torch.load(tmp_path / "all" / "5ba.pt", weights_only=True)
    average(plans[1], tmp_path / "x.safetensors")
    expected = load_file(tmp_path / "x.safetensors")
    assert all(equal(other[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_size_of_the_file_is_known_beforehand(tmp_path: Path):
    """The size of the file is known beforehand."""
    write_every_kind(tmp_path / "run")
    result = average(plan_of(tmp_path / "run", copy=["packed.*"]), tmp_path / "x.pt")
    (file,) = result.outputs[0].files
    assert file.size == (tmp_path / "x.pt").stat().st_size


def test_the_mark_is_that_of_safetensors(tmp_path: Path):
    """The archive has the same record of how it was averaged, and our reader gives it back."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    for name in ("x.pt", "x.safetensors"):
        average(plan_of(tmp_path / "run"), tmp_path / name)
    with safe_open(tmp_path / "x.safetensors", "pt") as reader:
        text = reader.metadata()["ema_cli"]
    assert zipfile.ZipFile(tmp_path / "x.pt").read(f"archive/{RECORD}").decode() == text
    assert open_checkpoint(tmp_path / "x.pt").mark == json.loads(text)


def test_an_average_is_refused_where_it_is_named(tmp_path: Path):
    """Named among checkpoints it is refused as safetensors of ours are, with exit code 4; --weights ema takes it."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    average(plan_of(tmp_path / "run"), tmp_path / "step-9.pt")
    run = open_run([tmp_path / "run" / "step-1.pt", tmp_path / "step-9.pt"])
    with pytest.raises(RunError, match=r"step-9\.pt: is averaged already: ema-cli made it") as refused:
        average(make_plan(run, Recipe(half_life=Time.parse("2ba"))), tmp_path / "x.pt")
    assert refused.value.exit_code == 4


@pytest.mark.parametrize("options", [{}, {"key": "model"}, {"weights": "raw"}])
def test_an_average_is_passed_over_in_a_search(tmp_path: Path, options: dict[str, Any]):
    """Among the checkpoints it is passed over and listed, whatever is said about how those are read."""
    write_torch_run(tmp_path, [1, 2, 3])
    average(plan_of(tmp_path), tmp_path / "step-9.pt")
    run = open_run(tmp_path, **options)
    assert [each.name for each in run.checkpoints] == ["step-1.pt", "step-2.pt", "step-3.pt"]
    assert [(each.name, each.reason) for each in run.passed_over] == [("step-9.pt", "averaged by ema-cli")]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b'{"checkpoints": [["a", "b", 1e9]]}', b"[" * 99999])
def test_a_mark_that_is_not_ours_says_nothing(tmp_path: Path, text: bytes):
    """Anybody can write the record: what is not as we write it is an average all the same, of nobody knows what."""
    torch.save({"w": torch.ones(2)}, tmp_path / "step-1.pt")
    with zipfile.ZipFile(tmp_path / "step-1.pt", "a") as archive:
        archive.writestr(f"step-1/{RECORD}", text)
    found = open_checkpoint(tmp_path / "step-1.pt")
    assert (found.mark, found.averaged) == ({}, "ema-cli made it")


def test_force_replaces_it(tmp_path: Path):
    """A file that is there stays, and is replaced with force; so is a folder of nothing but ours."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    plans = [plan_of(tmp_path / "run")]
    plans.append(make_plan(plans[0].run, Recipe(half_life=Time.parse("9ba"))))
    (tmp_path / "x.pt").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        average(plans[0], tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == b"old"
    average(plans[0], tmp_path / "x.pt", force=True)
    target = parse_target(tmp_path / "all" / "{half_life}.pt")
    for force in (False, True):
        averaging.average(plans, target, force=force)
    assert (tmp_path / "all" / "2ba.pt").read_bytes() == (tmp_path / "x.pt").read_bytes()
    write_torch_run(tmp_path / "all", [7])
    with pytest.raises(OutputError, match=r"holds 'step-7\.pt', which ema-cli did not write there"):
        averaging.average(plans, target, force=True)


def test_a_lora_whose_rank_is_in_its_header_is_not_written(tmp_path: Path):
    """A LoRA of Diffusers' has its rank in the header of safetensors, for which there is no place here."""
    tensors = {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(3, 2)}
    for step in (1, 2):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        metadata = {"format": "pt", "lora_adapter_metadata": '{"unet.r": 2}'}
        save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata=metadata)
    with pytest.raises(OutputError, match=r"'lora_adapter_metadata'.* has no place for") as refused:
        average(plan_of(tmp_path / "run"), tmp_path / "x.pt")
    assert refused.value.hint == "write it as safetensors: target='NAME.safetensors'"


@pytest.mark.parametrize("dtype", ["F6_E3M2", "F6_E2M3"])
def test_a_dtype_that_torch_lacks_is_refused(dtype: str):
    """The error names file, tensor and type, and the container that can."""
    specs = {"a": TensorSpec(DTYPES["F32"], ()), "b": TensorSpec(DTYPES[dtype], (4,))}
    with pytest.raises(OutputError, match=f"^x.pt: 'b' is {dtype} .4., which torch has no type for$") as refused:
        lay_out_torch_file("x.pt", specs, "{}")
    assert refused.value.hint == "write it as safetensors: target='NAME.safetensors'"


def test_a_table_is_used_again_for_the_same_tensors_in_the_same_order():
    """Several averages of one model have one table; another order is another pickle."""
    specs = {"a": TensorSpec(DTYPES["F32"], (2,)), "b": TensorSpec(DTYPES["I64"], ())}
    one = lay_out_torch_file("x", specs, "{}")
    assert lay_out_torch_file("y", dict(specs), "[]", [one.table]).table is one.table
    other = lay_out_torch_file("z", dict(reversed(specs.items())), "{}", [one.table])
    assert other.table is not one.table
    assert list(other.table.begins) == ["b", "a"]


@pytest.mark.parametrize("computed", [False, True])
def test_four_gigabytes_and_what_comes_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: bool):
    """A tensor of more than 4 GiB, and one that begins behind it: torch, Python's reader and ours find both."""
    checksum = torch_layout._checksum
    monkeypatch.setattr(
        torch_layout, "_checksum", lambda stream, at, size: checksum(stream, at, size) if size < 1 << 20 else 0
    )
    specs = {"big": TensorSpec(DTYPES["U8"], ((1 << 32) + 5,)), "after": TensorSpec(DTYPES["F32"], (3,))}
    file = lay_out_torch_file("x.pt", specs, '{"checkpoints":[]}')
    stream = OutputStream(tmp_path / "x.pt", summed=False)
    after = torch.tensor([1.5, -2.0, 3.25])
    stream.write(0, file.header)
    stream.write(file.header_size + file.table.begins["after"], after.numpy().data.cast("B"))
    file.finish(stream)  # between them is a hole, which takes no place
    stream.close()
    assert (tmp_path / "x.pt").stat().st_size == file.size
    with config.patch("load.calculate_storage_offsets", computed):
        found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)
    assert found["big"].shape == ((1 << 32) + 5,)
    assert torch.equal(found["after"], after)
    files.read_back(tmp_path / "x.pt", file)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.getinfo("archive/data/0").file_size == (1 << 32) + 5
        assert archive.read("archive/data/1") == after.numpy().tobytes()


@pytest.mark.parametrize("call", ["pread", "pwrite", "fsync"])
def test_a_disk_that_fails_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    """Checksums and directory come after the tensors: an error there leaves what was at the target, and no litter."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    (tmp_path / "x.pt").write_bytes(b"old")
    plan = plan_of(tmp_path / "run")
    finish = TorchOutput.finish

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def failing(file: TorchOutput, stream: OutputStream) -> None:
        monkeypatch.setattr(os, call, fail)
        finish(file, stream)

    monkeypatch.setattr(TorchOutput, "finish", failing)
    with pytest.raises(OutputError, match=r"x\.pt: cannot be written: Input/output error"):
        average(plan, tmp_path / "x.pt", force=True)
    assert (tmp_path / "x.pt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.pt"]


def unfinished(file: TorchOutput, stream: OutputStream) -> None:
    """Write no directory."""


def unmarked(file: TorchOutput, stream: OutputStream) -> None:
    """Write a mark that says nothing."""
    FINISH(TorchOutput(file.name, file.table, b"null"), stream)


def of_others(file: TorchOutput, stream: OutputStream) -> None:
    """Describe tensors of another type."""
    specs = {name: TensorSpec(DTYPES["I32"], spec.shape) for name, spec in file.table.specs.items()}
    other = lay_out_torch_file(file.name, specs, file.mark.decode())
    stream.write(0, other.header)
    FINISH(other, stream)


FINISH = TorchOutput.finish
OTHERS = "reads back with other tensors than were written"


@pytest.mark.parametrize(
    ("finish", "message"), [(unfinished, "does not read back"), (unmarked, OTHERS), (of_others, OTHERS)]
)
def test_a_file_that_reads_back_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: Callable[..., None], message: str
):
    """Before it is published, our own strict reader must find the tensors in it, and the mark."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    monkeypatch.setattr(TorchOutput, "finish", finish)
    with pytest.raises(VerificationError, match=message):
        average(plan_of(tmp_path / "run"), tmp_path / "x.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_line_writes_it(tmp_path: Path, cli: Cli):
    """`-o release.pt` writes a state dict that a model loads, and tells its path; `inspect` says how it was made."""
    saved = write_torch_run(tmp_path / "run", [100, 200, 300])
    done = cli("average", "run", "--half-life", "200ba", "-o", "release.pt")
    assert (done.code, done.out) == (0, "release.pt\n"), done
    expected = oracle(saved, plan_of(tmp_path / "run", "200ba").weights)
    found = torch.load(tmp_path / "release.pt", weights_only=True)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    shown = cli("inspect", "release.pt", "--json")
    assert shown.json["recipe"]["half_life"] == "200ba"
    refused = cli("average", "release.pt", "--half-life", "200ba", "-o", "again.pt")
    assert refused.code == 4, refused
    assert not (tmp_path / "again.pt").exists()

"""Damage inside a checkpoint of torch.save shows by the checksums that torch writes with each record."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.comparing.stored_sums import check_stored_sums
from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint
from tests.conftest import Cli

LAW = ("--half-life", "1ba")


def save(path: Path, step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(step)
    torch.save(
        {"model": {"a.weight": torch.randn(40, 50, generator=generator), "b": torch.ones(3)}, "step": step}, path
    )


def zero(path: Path, count: int = 3000) -> None:
    """Zero bytes in the middle of the largest record, as a broken disk or copy does."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        stored = archive.read(entry)
    data = bytearray(path.read_bytes())
    at = data.index(stored) + 500
    data[at : at + count] = bytes(count)
    path.write_bytes(data)


@pytest.fixture
def without_sums() -> Iterator[None]:
    """Let torch write no checksums."""
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def make_run(folder: Path) -> Path:
    for step in (1, 2, 3):
        save(folder / f"step-{step}.pt", step)
    return folder / "step-2.pt"


def test_zeros_in_a_checkpoint_are_found(cli: Cli, tmp_path: Path):
    """--checksum names the file and the tensor, and writes nothing; `verify --against` finds what came later."""
    damaged = make_run(tmp_path / "run")
    assert cli("average", "run", *LAW, "--checksum", "-o", "good.safetensors").code == 0
    zero(damaged)
    done = cli("average", "run", *LAW, "--checksum", "-o", "bad.safetensors")
    assert (done.code, "run/step-2.pt: 'a.weight' is damaged" in done.err) == (3, True), done
    assert not (tmp_path / "bad.safetensors").exists()
    hint = done.err[done.err.index("--exclude") :].split()
    assert cli("average", "run", *LAW, "--checksum", "-o", "rest.safetensors", *hint).code == 0
    assert cli("verify", "good.safetensors", "--against", "run").code != 0


def test_an_average_of_a_damaged_checkpoint_does_not_verify(cli: Cli, tmp_path: Path):
    """Made without --checksum, it is what the checkpoints give; `verify --against` says that one is damaged."""
    zero(make_run(tmp_path / "run"))
    assert cli("average", "run", *LAW, "-o", "out.safetensors").code == 0
    assert cli("verify", "out.safetensors").code == 0
    done = cli("verify", "out.safetensors", "--against", "run")
    assert (done.code, "run/step-2.pt: 'a.weight' is damaged" in done.err) == (3, True), done


@pytest.mark.usefixtures("without_sums")
def test_without_checksums_nothing_is_damage(cli: Cli, tmp_path: Path):
    """Torch can be told to write none: that is said, and no error; the manifest has sums all the same."""
    make_run(tmp_path / "run")
    with zipfile.ZipFile(tmp_path / "run" / "step-1.pt") as archive:
        assert {entry.CRC for entry in archive.infolist()} == {0}
    done = cli("average", "run", *LAW, "--checksum", "-o", "out.safetensors", "--strict")
    assert (done.code, "note: step-1.pt and 2 more: no checksums were written" in done.err) == (0, True), done
    assert all(row["blocks"] for row in json.loads((tmp_path / "out.safetensors.manifest.json").read_text())["inputs"])
    done = cli("verify", "out.safetensors", "--against", "run", "--json")
    assert (done.code, len(done.json["outputs"][0]["notes"])) == (0, 1), done


@pytest.mark.parametrize("kind", ["view", "tied", "transposed", "empty"])
def test_records_are_checked_whole(tmp_path: Path, kind: str):
    """A part of a storage, or several tensors in one: the record around them is summed up, once."""
    whole = torch.randn(60, 60)
    tensors = {
        "view": {"w": whole[3:7]},
        "tied": {"w": whole, "head": whole},
        "transposed": {"w": whole.T},
        "empty": {"nothing": torch.zeros(0), "w": whole},
    }[kind]
    path = tmp_path / "step-1.pt"
    torch.save({"model": tensors, "optimizer": torch.randn(7)}, path)
    (record,) = open_checkpoint(path).tensors.stored_records()
    assert zlib.crc32(record.source.read(record.start, record.size)) == record.checksum
    assert check_stored_sums([open_checkpoint(path)], 2) == []
    zero(path)
    with pytest.raises(CheckpointError, match="'w' is damaged"):
        check_stored_sums([open_checkpoint(path)], 2)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pieces_of_a_distributed_checkpoint_are_checked(tmp_path: Path):
    """Each record of a shard is an archive with checksums of its own."""
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": {"w": torch.randn(30, 30), "b": torch.ones(2)}}, checkpoint_id=tmp_path / "step-1", no_dist=True)
    opened = open_checkpoint(tmp_path / "step-1")
    records = {record.tensor: record for record in opened.tensors.stored_records()}
    assert {name: record.size for name, record in records.items()} == {"w": 3600, "b": 8}
    assert check_stored_sums([opened], 1) == []
    (shard,) = (tmp_path / "step-1").glob("*.distcp")
    data = bytearray(shard.read_bytes())
    at = data.index(records["w"].source.read(records["w"].start, 64))
    data[at : at + 64] = bytes(64)
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="'w' is damaged"):
        check_stored_sums([open_checkpoint(tmp_path / "step-1")], 1)


def test_formats_without_checksums_are_no_matter(cli: Cli, tmp_path: Path):
    """Safetensors and the old format of torch have none: nothing is said."""
    for step in (1, 2):
        save_file({"w": torch.full((3,), float(step))}, tmp_path / f"step-{step}.safetensors")
        torch.save({"w": torch.ones(3)}, tmp_path / f"old-{step}.pt", _use_new_zipfile_serialization=False)
        assert check_stored_sums([open_checkpoint(tmp_path / f"old-{step}.pt")], 1) == []
    done = cli("average", ".", "--exclude", "old*", *LAW, "--checksum")
    assert (done.code, "note:" in done.err) == (0, False), done

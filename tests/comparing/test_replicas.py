"""What ranks have more than once is compared whole: samples and checksums miss what a byte in the middle shows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import Replicate, Shard

from ema_cli.checkpoint import Checkpoint
from ema_cli.comparing.replicas import check_replicas
from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.storage.replicas import Replica, Replicas
from tests.conftest import Cli
from tests.formats.ranks.saves import VERL, Cut, save_ranks
from tests.formats.zero.make import Saved, small

ROWS = 4000
POLYNOMIAL = 0x104C11DB7  # of CRC-32
DIFFERS = "buffers that differ between ranks are those of the first: {}"
QUARTER = ROWS * 5  # bytes of a matrix of four bytes each, five columns: between the beginning and the middle


def matrix(rows: int = ROWS) -> torch.Tensor:
    """Return a matrix in which each element is another."""
    return torch.arange(5.0 * rows).reshape(rows, 5)


def change(path: Path, tensor: torch.Tensor, at: int, *, same_sum: bool = False) -> None:
    """Change one bit of a tensor in a file; or 18 of five bytes, so that their CRC-32 stays the same."""
    stored = tensor.numpy().tobytes()
    changed = bytearray(stored)
    for bit in range(33):
        if (POLYNOMIAL >> (32 - bit)) & 1 and (same_sum or not bit):
            changed[at + bit // 8] ^= 1 << (bit % 8)
    assert (zlib.crc32(changed) == zlib.crc32(stored)) is same_sum
    data = path.read_bytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, changed))


def in_each_fsdp(folder: Path, name: str = VERL, *, zipped: bool = True) -> Path:
    """Write a parameter that each of two ranks has whole, and one that they share; return the second's file."""
    state = {"a": Cut(matrix(), [Replicate()]), "b": Cut(matrix(), [Shard(0)])}
    save_ranks(folder, state, {"fsdp": 2}, name=name, zipped=zipped)
    return folder / name.format(world=2, rank=1)


def in_each_hsdp(folder: Path) -> Path:
    """Write a parameter of which two ranks each have a half, and two others the same halves."""
    halves = [Replicate(), Shard(0)]
    save_ranks(folder, {"a": Cut(matrix(2 * ROWS), halves)}, {"replicas": 2, "shards": 2}, zipped=False)
    return folder / VERL.format(world=4, rank=3)


def in_each_file(folder: Path) -> Path:
    """Write a whole model for each of two ranks."""
    for rank in range(2):
        save_file({"a": matrix(), "b": torch.ones(3)}, folder / f"rank{rank}.safetensors")
    return folder / "rank1.safetensors"


def in_each_tensor_rank(folder: Path) -> Path:
    """Write a parameter that does not train, which two ranks of DeepSpeed's tensor parallel training have whole."""
    saved = small(stage=1, ranks=2, frozen={"a": matrix()}, dtype=torch.float32)
    path = saved.write_universal(folder, 2) / "mp_rank_01_model_states.pt"
    states = torch.load(path)
    del states["frozen_param_fragments"]  # which have it once more
    torch.save(states, path)
    return path


WRITERS: dict[str, tuple[Callable[[Path], Path], torch.Tensor, bool]] = {
    "FSDP": (in_each_fsdp, matrix(), True),
    "FSDP, of torch's old format": (lambda folder: in_each_fsdp(folder, zipped=False), matrix(), False),
    "Accelerate": (lambda folder: in_each_fsdp(folder, "pytorch_model_fsdp_rank{rank}.bin"), matrix(), True),
    "numbered files": (lambda folder: in_each_fsdp(folder, "model_{rank}.pt"), matrix(), True),
    "HSDP": (in_each_hsdp, matrix(2 * ROWS)[ROWS:], False),
    "DeepSpeed's tensor parallel training": (in_each_tensor_rank, matrix(), True),
    "a model in each file": (in_each_file, matrix(), False),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_one_byte_that_samples_miss_is_found(kind: str, tmp_path: Path) -> None:
    """The file opens, for samples and checksums are equal; compared whole, the tensor and the file are named."""
    write, tensor, same_sum = WRITERS[kind]
    other = write(tmp_path)
    assert check_replicas([open_checkpoint(tmp_path)], 2) == []
    change(other, tensor, QUARTER, same_sum=same_sum)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="'a' differs from") as caught:
        check_replicas([checkpoint], 2)
    assert caught.value.subject == other


def test_a_tensor_that_the_user_copies_may_differ(tmp_path: Path) -> None:
    """Where ranks keep what nothing calls a buffer, the user's word counts here, too."""
    name = "rank{rank}.pt"
    for rank in range(2):
        state = {"own": torch.cat([matrix(), matrix() + (torch.arange(5) == 2) * rank, matrix()]), "b": torch.ones(3)}
        torch.save(state, tmp_path / name.format(rank=rank), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="'own' differs"):
        check_replicas([open_checkpoint(tmp_path)], 1)
    assert check_replicas([open_checkpoint(tmp_path, ReadOptions(copy=("own",)))], 1) == []


def test_buffers_that_differ_are_named(tmp_path: Path) -> None:
    """Each rank counts for itself: those of the first are taken. Samples had not shown it."""
    for folder, write in (("fsdp", _with_buffer), ("files", _with_statistics)):
        (tmp_path / folder).mkdir()
        other = write(tmp_path / folder)
        assert check_replicas([open_checkpoint(tmp_path / folder)], 1) == []
        change(other, matrix(), QUARTER)
        checkpoint = open_checkpoint(tmp_path / folder)
        assert checkpoint.warnings == ()
        ((text, of),) = check_replicas([checkpoint], 1)
        assert (text, of) == (DIFFERS.format("norm.running_mean"), checkpoint)


def test_buffers_that_differ_are_a_warning(cli: Cli, tmp_path: Path) -> None:
    """As where samples show it: with --strict nothing is averaged. It was a note, which nothing could demand."""
    for step in (1, 2):
        (tmp_path / f"run/step-{step}").mkdir(parents=True)
        change(_with_statistics(tmp_path / f"run/step-{step}"), matrix(), QUARTER)
    average = ("average", "run", "--half-life", "1ba", "-o", "out.safetensors")
    said = DIFFERS.format("norm.running_mean")
    refused = cli(*average, "--checksum", "--strict")
    assert (refused.code, said in refused.err, (tmp_path / "out.safetensors").exists()) == (6, True, False), refused
    done = cli(*average, "--checksum")
    assert (done.code, f"warning: step-1 and 1 more: {said}" in done.err) == (0, True), done
    done = cli(*average, "--force", "--checksum", "--json")
    assert [each for each in json.loads(done.out)["warnings"] if said in each], done.out
    assert cli(*average, "--force", "--strict").code == 0


def test_the_manifest_warns_of_buffers_that_differ_and_verify_asks_for_it(cli: Cli, tmp_path: Path) -> None:
    """The manifest did not have what was shown, and verify showed it as a note."""
    for step in (1, 2):
        (tmp_path / f"run/step-{step}").mkdir(parents=True)
        other = _with_statistics(tmp_path / f"run/step-{step}")
        if step == 2:
            change(other, matrix(), QUARTER)
    assert cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors", "--checksum").code == 0
    said = f"step-2: {DIFFERS.format('norm.running_mean')}"
    path = tmp_path / "out.safetensors.manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["warnings"].count(said) == 1
    verify = ("verify", "out.safetensors", "--against", "run", "--strict")
    for options in ((), ("--sample",)):
        verified = cli(*verify, *options)
        assert (verified.code, "running_mean" in verified.err) == (0, False), verified
    again = cli("average", "run", "--recipe", path, "-o", "again.safetensors")
    assert again.code == 0, again
    assert json.loads((tmp_path / "again.safetensors.manifest.json").read_text())["warnings"] == manifest["warnings"]
    manifest["warnings"].remove(said)
    path.write_text(json.dumps(manifest))
    verified = cli(*verify[:-1])
    assert (verified.code, "does not say in its warnings" in verified.err) == (6, True), verified


def _with_buffer(folder: Path) -> Path:
    state = {"norm.weight": Cut(torch.ones(8), [Shard(0)]), "norm.running_mean": matrix()}
    save_ranks(folder, state, {"fsdp": 2}, zipped=False)
    return folder / VERL.format(world=2, rank=1)


def _with_statistics(folder: Path) -> Path:
    for rank in range(2):
        save_file({"norm.weight": torch.ones(8), "norm.running_mean": matrix()}, folder / f"rank{rank}.safetensors")
    return folder / "rank1.safetensors"


@pytest.mark.parametrize("universal", [False, True])
def test_buffers_of_deepspeed_s_ranks_are_compared(universal: bool, tmp_path: Path) -> None:
    """Stage 3 saves a model's buffers once for each rank; the first rank's are taken, as DeepSpeed's script takes."""
    saved = small(buffers={"norm.running_mean": matrix(), "seen": torch.ones(3)})
    folder = (saved.write_universal if universal else saved.write)(tmp_path / "global_step5")
    assert check_replicas([open_checkpoint(folder)], 1) == []
    states = Saved.model_states(saved, 1)
    states["module"]["seen"] = torch.zeros(3)
    torch.save(states, folder / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    checkpoint = open_checkpoint(folder)
    assert check_replicas([checkpoint], 1) == [(DIFFERS.format("seen"), checkpoint)]
    assert check_replicas([open_checkpoint(folder, ReadOptions(copy=("seen",)))], 1) == []


def test_average_and_verify_compare_where_checksums_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    """Without --checksum the difference is not seen; with it nothing is written, and a later one does not verify."""
    others = [in_each_fsdp(tmp_path / "run" / f"global_step_{step}") for step in (1, 2)]
    plain = ("average", "run", "--half-life", "1ba")
    assert cli(*plain, "--checksum", "-o", "good.safetensors").code == 0
    change(others[0], matrix(), QUARTER, same_sum=True)
    assert cli(*plain, "-o", "out.safetensors").code == 0
    done = cli(*plain, "--checksum", "-o", "bad.safetensors")
    assert (done.code, "rank_1.pt: 'a' differs from model_world_size_2_rank_0.pt" in done.err) == (3, True), done
    assert not (tmp_path / "bad.safetensors").exists()
    assert cli("verify", "out.safetensors", "--against", "run").code == 0
    done = cli("verify", "good.safetensors", "--against", "run")
    assert (done.code, "'a' differs" in done.err) == (3, True), done


def test_little_is_held_of_what_is_compared(tmp_path: Path) -> None:
    """However large a tensor is, blocks of it are compared: memory is bounded."""
    sizes: list[int] = []
    asked: list[tuple[int, int]] = []

    def read(start: int, out: memoryview) -> None:
        sizes.append(len(out))
        asked.append((start, start + len(out)))

    size = 10 * (1 << 20) + 3
    (tmp_path / "a.pt").write_bytes(b"")
    replicas = Replicas("a", size, [Replica(tmp_path / "a.pt", read)] * 3, "never")
    checkpoint = stand_in(tmp_path, replicas)
    assert check_replicas([checkpoint], 1) == []
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == 3 * size
    assert sorted(dict.fromkeys(asked))[-1][1] == size


def stand_in(folder: Path, replicas: Replicas) -> Checkpoint:
    """Return a checkpoint of one tensor, with replicas of it."""
    from dataclasses import replace

    save_file({"a": torch.ones(1)}, folder / "step-1.safetensors")
    return replace(open_checkpoint(folder / "step-1.safetensors"), replicas=lambda: (replicas,))

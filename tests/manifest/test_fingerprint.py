"""What tells an input again: its fingerprint, and the sums of all that is read of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ema_cli import Recipe, Time, average, make_plan, open_run, parse_target
from ema_cli.errors import UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.manifest.fingerprint import SAMPLE_BYTES, SAMPLES, fingerprints
from ema_cli.storage import checksums as sums_module
from ema_cli.storage.checksums import BLOCK_BYTES, Checksums
from ema_cli.system.memory import peak_bytes

STEPS = [10, 20, 30]
SHAPES = {"b": (300, 70), "a": (5,), "c": (1000,), "d": (0,), "e": ()}


def write_run(folder: Path, steps: Sequence[int] = STEPS, scale: int = 1) -> dict[int, dict[str, torch.Tensor]]:
    """Write a run with floats of two types and two counters; return its tensors."""
    saved = {}
    folder.mkdir()
    for step in steps:
        random = torch.Generator().manual_seed(step)
        tensors = {
            name: torch.randn([size * scale for size in shape], generator=random) for name, shape in SHAPES.items()
        }
        tensors["half"] = torch.randn(999, generator=random).bfloat16()
        tensors["counter"] = torch.tensor(step)
        tensors["counters"] = torch.arange(50) + step
        save_file(tensors, folder / f"step-{step}.safetensors")
        saved[step] = tensors
    return saved


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def order_in(path: Path) -> list[str]:
    """Return the names of a file of safetensors in the order of their bytes."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: (header[name]["data_offsets"], name))


def sums(parts: Sequence[bytes], size: int) -> list[str]:
    """Return the sha256 of each block of so many bytes of what the parts are together."""
    data = b"".join(parts)
    return [hashlib.sha256(data[begin : begin + size]).hexdigest() for begin in range(0, len(data), size)]


def expected(tensors: dict[str, torch.Tensor], order: Sequence[str], size: int, *, newest: bool) -> list[str]:
    """Return the sums of a checkpoint as the manifest says: of the averaged tensors, then of the copied ones."""
    raw = {name: raw_bytes(tensor) for name, tensor in tensors.items()}
    floating = [name for name in order if tensors[name].is_floating_point()]
    copied = [name for name in order if not tensors[name].is_floating_point()]
    found = sums([raw[name] for name in floating], size)
    return found + (sums([raw[name] for name in copied], size) if newest else [])


def blocks_of(manifest: Path) -> list[list[str]]:
    """Return the sums that a manifest tells, of each input."""
    told: list[Any] = json.loads(manifest.read_text())["inputs"]
    return [each["blocks"] for each in told]


def plans(folder: Path, *half_lives: str, copy: Sequence[str] = ()) -> list[Any]:
    """Return a plan of a run for each half-life."""
    run = open_run([folder], copy=copy)
    return [make_plan(run, Recipe(half_life=Time.parse(each))) for each in half_lives]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("size", [977, 4096, BLOCK_BYTES])
def test_sums_are_those_of_the_bytes_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, size: int):
    """Against hashlib over all bytes put together, on any number of threads, in blocks of any size."""
    monkeypatch.setattr(sums_module, "BLOCK_BYTES", size)
    saved = write_run(tmp_path / "ckpts")
    average(plans(tmp_path / "ckpts", "10ba"), parse_target(tmp_path / "x.safetensors"), threads=threads, checksum=True)
    order = order_in(tmp_path / "x.safetensors")
    assert blocks_of(tmp_path / "x.safetensors.manifest.json") == [
        expected(saved[step], order, size, newest=step == STEPS[-1]) for step in STEPS
    ]


@pytest.mark.slow
def test_sums_depend_on_no_memory(tmp_path: Path):
    """With the least memory that will do, and with all: a tensor of 20 MB is read in many blocks, or in few."""
    saved = write_run(tmp_path / "ckpts", [10, 20], scale=16)
    (plan,) = plans(tmp_path / "ckpts", "10ba")
    for number, (tight, threads) in enumerate([(True, 1), (True, 4), (False, 2)]):
        target = tmp_path / f"{number}.safetensors"
        with pytest.raises(UsageError) as refused:
            average(plan, parse_target(target), max_memory=peak_bytes())
        least = (int(re.search(r"needs (\d+) MB", str(refused.value))[1]) + 1) * 10**6
        average(plan, parse_target(target), max_memory=least if tight else None, threads=threads, checksum=True)
        order = order_in(target)
        told = blocks_of(target.with_name(f"{target.name}.manifest.json"))
        assert told == [expected(saved[step], order, BLOCK_BYTES, newest=step == 20) for step in (10, 20)]
    assert len(told[0]) == 2


def test_sums_are_the_same_alone_and_among_several(tmp_path: Path):
    """Averages made in one pass have the manifests that each would have alone: of what it does not read, no sums."""
    write_run(tmp_path / "ckpts")
    for each in plans(tmp_path / "ckpts", "0ba", "10ba", "infba"):
        target = tmp_path / f"alone-{each.recipe.law.name}.safetensors"
        average(each, parse_target(target), checksum=True)
    average(
        plans(tmp_path / "ckpts", "0ba", "10ba", "infba"),
        parse_target(tmp_path / "all" / "{half_life}.safetensors"),
        checksum=True,
        threads=3,
    )
    for law in ("0ba", "10ba", "infba"):
        alone, among = tmp_path / f"alone-{law}.safetensors", tmp_path / "all" / f"{law}.safetensors"
        assert among.read_bytes() == alone.read_bytes()
        manifests = [path.with_name(f"{path.name}.manifest.json").read_text() for path in (alone, among)]
        assert manifests[0].replace(alone.name, among.name) == manifests[1]


def test_copied_tensors_are_a_stream_of_their_own(tmp_path: Path):
    """Of the newest all that is copied, of the others nothing of it."""
    saved = write_run(tmp_path / "ckpts")
    (plan,) = plans(tmp_path / "ckpts", "10ba", copy=["b", "half"])
    average(plan, parse_target(tmp_path / "x.safetensors"), checksum=True)
    order = order_in(tmp_path / "x.safetensors")
    raw = {name: raw_bytes(tensor) for name, tensor in saved[30].items()}
    copied = [name for name in order if name in ("b", "half", "counter", "counters")]
    told = blocks_of(tmp_path / "x.safetensors.manifest.json")
    assert [len(each) for each in told] == [1, 1, 2]
    assert told[2][1:] == sums([raw[name] for name in copied], BLOCK_BYTES)
    assert told[2][:1] == sums([raw[name] for name in order if name not in copied], BLOCK_BYTES)


@pytest.mark.slow
@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 200), st.randoms())
def test_whoever_is_early_waits(parts: list[bytes], size: int, random: Any):
    """However the threads come, the sums are those of the parts in the order of their numbers, less what is skipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums_module, "BLOCK_BYTES", size)
        checksums = Checksums(1)
        numbers = list(range(len(parts)))
        random.shuffle(numbers)
        skipped = {number for number in numbers if random.random() < 0.2}
        threads = [
            threading.Thread(
                target=checksums.skip if number in skipped else checksums.add,
                args=(0, number) if number in skipped else (0, number, memoryview(parts[number])),
            )
            for number in numbers
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join(10)
            assert not each.is_alive()
        kept = [part for number, part in enumerate(parts) if number not in skipped]
        assert checksums.blocks(0, newest=True) == sums(kept, size)


def test_stop_lets_all_go():
    """A thread whose turn never comes goes on when another has failed."""
    checksums = Checksums(1)
    waiting = threading.Thread(target=checksums.add, args=(0, 5, memoryview(b"x")), daemon=True)
    waiting.start()
    checksums.stop()
    waiting.join(10)
    assert not waiting.is_alive()
    assert checksums.blocks(0, newest=False) == []


def found(folder: Path, threads: int = 1) -> list[str]:
    """Return the fingerprints of a run's checkpoints."""
    return fingerprints(open_run([folder]).checkpoints, threads)


def test_fingerprints_tell_checkpoints_apart(tmp_path: Path):
    """Each has its own, the same one for as many threads, and for a copy elsewhere."""
    write_run(tmp_path / "ckpts")
    write_run(tmp_path / "again")
    first = found(tmp_path / "ckpts")
    assert len(set(first)) == 3
    assert first == found(tmp_path / "ckpts", 8) == found(tmp_path / "again")


def test_fingerprints_are_what_the_manifest_says(tmp_path: Path):
    """Names, dtypes and shapes by name, then 16 blocks of 4096 bytes at equal distances over all bytes by name."""
    (loaded,) = write_run(tmp_path / "ckpts", [10]).values()
    digest = hashlib.sha256()
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16"}
    for name in sorted(loaded):
        shape = ", ".join(map(str, loaded[name].shape))
        digest.update(f"{name}\0{kinds[loaded[name].dtype]} [{shape}]\n".encode())
    total = sum(tensor.nbytes for tensor in loaded.values())
    middles = [(2 * number + 1) * total // (2 * SAMPLES) for number in range(SAMPLES)]
    before = 0
    for name in sorted(loaded):
        raw, size = raw_bytes(loaded[name]), loaded[name].dtype.itemsize
        sampled = np.zeros(len(raw), bool)
        for middle in middles:
            if before <= middle < before + len(raw):
                begin = (middle - before) // size * size
                sampled[begin : begin + SAMPLE_BYTES] = True
        digest.update(bytes(byte for byte, taken in zip(raw, sampled, strict=True) if taken))
        before += len(raw)
    assert found(tmp_path / "ckpts") == [digest.hexdigest()]


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "value"])
def test_a_small_model_is_sampled_whole(tmp_path: Path, change: str):
    """Any change of up to 64 KiB of weights gives another fingerprint."""
    tensors = {"a": torch.arange(2000.0), "b": torch.arange(6.0)}
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    save_file(tensors, tmp_path / "before/step-1.safetensors")
    if change == "name":
        tensors["c"] = tensors.pop("b")
    elif change == "shape":
        tensors["b"] = tensors["b"].reshape(2, 3)
    elif change == "dtype":
        tensors["b"] = tensors["b"].view(torch.int32)
    else:
        tensors["a"][1234] += 1
    save_file(tensors, tmp_path / "after/step-1.safetensors")
    assert found(tmp_path / "before") != found(tmp_path / "after")


def test_a_model_without_a_byte(tmp_path: Path):
    """Names and shapes are all that there is of it."""
    for number, shape in enumerate([(0,), (0, 2)]):
        (tmp_path / str(number)).mkdir()
        save_file({"a": torch.zeros(shape)}, tmp_path / f"{number}/step-1.safetensors")
    first, second = (open_checkpoint(tmp_path / f"{number}/step-1.safetensors") for number in (0, 1))
    assert fingerprints([first], 1) != fingerprints([second], 1)

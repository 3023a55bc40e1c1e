"""Several averages in one pass: each is what it would be alone, and all of them come together or not at all."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import averaging, preparing
from ema_cli.dtypes import DTYPES
from ema_cli.errors import NonFiniteError, OutputError, RunError, UsageError
from ema_cli.folding import reading
from ema_cli.folding.kernel import BlockSums, ReadEnd
from ema_cli.folding.spans import Span
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import open_run
from ema_cli.storage.local_file import LocalFile
from ema_cli.writing import files
from ema_cli.writing.target import Target, default_target, parse_target
from tests.conftest import make_tensors, write_hf_run, write_torch_run

MANY = ("0ba", "0.02ba", "0.5ba", "1ba", "3ba", "20ba", "1000ba", "infba")


def plans_of(folder: Path, half_lives: Sequence[str], copy: Sequence[str] = (), **options: Any) -> list[Plan]:
    """Return a plan for each half-life, all of one run."""
    run = open_run([folder], copy=copy)
    return [make_plan(run, Recipe(half_life=Time.parse(each), **options)) for each in half_lives]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file in the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_each_alone(
    run: Path, place: Path, half_lives: Sequence[str], target: str, **options: Any
) -> averaging.Result:
    """Average in one pass and one by one, and check that every file has the same bytes."""
    kept = ("start", "stop", "last", "bias_correction", "copy")
    recipe = {name: options.pop(name) for name in kept if name in options}
    plans = plans_of(run, half_lives, **recipe)
    done = averaging.average(plans, parse_target(place / "together" / target), **options)
    (place / "alone").mkdir()
    for plan in plans:
        averaging.average(plan, parse_target(place / "alone" / target), **options)
    assert len(contents(place / "alone")) >= len(half_lives)
    assert contents(place / "together") == contents(place / "alone")
    assert done.target == Target(place / "together", is_folder=True)
    return done


def write_odd_run(folder: Path, dtype: torch.dtype, steps: int = 9) -> None:
    """Save a run with what arithmetic may stumble over: zeros of both signs, masks, the smallest, ties, integers."""
    folder.mkdir()
    random = torch.Generator().manual_seed(1)
    frozen = torch.randn(33, generator=random).to(dtype)
    mask = torch.tensor([0.0, -torch.inf, torch.inf], dtype=dtype)
    for step in range(1, steps + 1):
        tied = torch.randn(7, 5, generator=random).to(dtype)
        tensors = {
            "tied": tied,
            "head": tied,
            "frozen": frozen,
            "mask": mask,
            "zeros": torch.tensor([0.0, -0.0, -0.0 if step % 2 else 0.0], dtype=dtype),
            "small": (torch.randn(64, generator=random) * torch.finfo(dtype).tiny).to(dtype),
            "large": torch.randn(1000, generator=random).to(dtype) * 100,
            "scalar": torch.tensor(step / 3, dtype=dtype),
            "empty": torch.zeros(0, 4, dtype=dtype),
            "count": torch.tensor([step, -step]),
            "flag": torch.tensor(step % 2 == 0),
        }
        torch.save({"model": tensors, "step": step}, folder / f"step-{step}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_each_average_is_byte_for_byte_what_it_is_alone(tmp_path: Path, dtype: torch.dtype):
    """Half-lives of nothing, below one unit, of weights that vanish, and infinite, over every kind of value."""
    if dtype is torch.complex64:
        (tmp_path / "run").mkdir()
        for step in range(1, 9):
            values = torch.randn(50, 2, generator=torch.Generator().manual_seed(step))
            save_file({"c": torch.view_as_complex(values)}, tmp_path / "run" / f"step-{step}.safetensors")
    else:
        write_odd_run(tmp_path / "run", dtype)
    check_each_alone(tmp_path / "run", tmp_path, MANY, "ema-{half_life}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"start": Time.parse("4ba")},
        {"last": 3},
        {"stop": Time.parse("7ba"), "bias_correction": True},
        {"dtype": DTYPES["BF16"]},
        {"dtype": DTYPES["F16"], "copy": ("large", "s*")},
        {"threads": 1},
        {"threads": 8, "max_memory": 1 << 40},
    ],
    ids=str,
)
def test_options_hold_for_every_average(tmp_path: Path, options: dict[str, Any]):
    """What selects, converts or copies, and what is none of the output's business: the bytes of the average alone."""
    write_odd_run(tmp_path / "run", torch.float32)
    check_each_alone(tmp_path / "run", tmp_path, MANY, "ema-{half_life}.safetensors", **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_several_averages_let_nan_and_infinity_through_with_the_same_bits(tmp_path: Path, dtype: torch.dtype):
    """NaN and infinity that are let through come out with the same bits."""
    write_odd_run(tmp_path / "run", dtype, steps=4)
    for step, value in ((1, torch.nan), (3, torch.inf), (4, -torch.nan)):
        tensors = torch.load(tmp_path / "run" / f"step-{step}.pt")["model"]
        tensors["large"][step * 10] = value
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    done = check_each_alone(tmp_path / "run", tmp_path, MANY, "ema-{half_life}.safetensors", allow_non_finite=True)
    assert done.non_finite == ("large",)


def test_folders_and_shards_are_those_of_each_newest_checkpoint(tmp_path: Path):
    """Where the newest checkpoint that enters differs, so do shards and side files, as for each average alone."""
    saved = write_hf_run(tmp_path / "run", [100, 200, 300])
    newest = tmp_path / "run" / "checkpoint-300"
    names = list(saved[2])
    shards = {name: f"model-0000{1 + (name == names[0])}-of-00002.safetensors" for name in names}
    for shard in set(shards.values()):
        save_file({name: saved[2][name] for name in names if shards[name] == shard}, newest / shard)
    (newest / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (newest / "model.safetensors").unlink()
    (newest / "generation_config.json").write_text("{}")
    check_each_alone(tmp_path / "run", tmp_path, ["0ba", "100ba", "infba"], "ema-{half_life}")
    assert sorted(path.name for path in (tmp_path / "together" / "ema-infba").iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "ema-manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "together" / "ema-0ba" / "model-00002-of-00002.safetensors").exists()
    assert (tmp_path / "together" / "ema-0ba" / "generation_config.json").exists()


def test_every_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However many averages are made, no byte of a tensor is read a second time, nor one that enters none."""
    for step in range(1, 7):
        (tmp_path / "run").mkdir(exist_ok=True)
        save_file(make_tensors(step), tmp_path / "run" / f"step-{step}.safetensors")
    plans = plans_of(tmp_path / "run", ["3ba", "0ba", "20ba", "infba"], start=Time.parse("2ba"))
    read: dict[tuple[str, int], int] = {}
    in_python, in_kernel = LocalFile.read_into, reading.read_and_add

    def count(file: LocalFile, offset: int, size: int) -> None:
        for at in range(offset, offset + size):
            read[file.path.name, at] = read.get((file.path.name, at), 0) + 1

    def read_into(self: LocalFile, offset: int, out: memoryview) -> None:
        count(self, offset, len(out))
        in_python(self, offset, out)

    def read_and_add(sums: BlockSums, numbers: range, rows: list[list[Span]], stop: bytearray) -> ReadEnd | None:
        for row in rows:
            for span in row:
                count(*span)
        return in_kernel(sums, numbers, rows, stop)

    monkeypatch.setattr(LocalFile, "read_into", read_into)
    monkeypatch.setattr(reading, "read_and_add", read_and_add)
    done = averaging.average(plans, Target(tmp_path / "out", is_folder=True), manifest=False)
    assert set(read.values()) == {1}
    # Floats of the five that enter; the counters of the oldest and the newest, which end averages.
    assert len(read) == done.bytes_read == 5 * 16 * 4 + 2 * 8
    assert {name for name, _ in read} == {f"step-{step}.safetensors" for step in range(2, 7)}


def test_a_dry_run_of_several_tells_the_bytes_that_are_read(tmp_path: Path):
    """Tied tensors count once, counters as often as checkpoints end an average."""
    write_odd_run(tmp_path / "run", torch.float32)
    for number, half_lives in enumerate((["3ba"], ["0ba"], MANY)):
        plans = plans_of(tmp_path / "run", half_lives)
        target = parse_target(tmp_path / f"{number}")
        work = preparing.prepare(plans, target, force=False, manifest=False)
        done = averaging.average(plans, target, manifest=False)
        assert (work.bytes_to_read, work.bytes_to_write) == (done.bytes_read, done.bytes_written)
        assert done.bytes_written == sum(map(len, contents(tmp_path / f"{number}").values()))


def test_one_plan_is_the_same_alone_or_in_a_list(tmp_path: Path):
    """Several are the general case: a list of one goes where one goes."""
    write_torch_run(tmp_path / "run", [100, 200])
    (plan,) = plans_of(tmp_path / "run", ["50ba"])
    averaging.average(plan, parse_target(tmp_path / "a.safetensors"))
    averaging.average([plan], parse_target(tmp_path / "b-{half_life}.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b-50ba.safetensors").read_bytes()


@pytest.mark.parametrize("force", [False, True])
def test_an_error_in_the_middle_leaves_nothing_of_any(tmp_path: Path, force: bool):
    """A NaN that only one of the averages would have met: no folder, or the old one as it was, and no litter."""
    write_odd_run(tmp_path / "run", torch.float32)
    target = parse_target(tmp_path / "out")
    if force:
        averaging.average(plans_of(tmp_path / "run", ["2ba", "5ba"]), target)
    before = contents(tmp_path / "out")
    broken = {**torch.load(tmp_path / "run" / "step-1.pt")["model"], "scalar": torch.tensor(torch.nan)}
    torch.save({"model": broken, "step": 1}, tmp_path / "run" / "step-1.pt")
    with pytest.raises(NonFiniteError, match=r"step-1\.pt: 'scalar' is not finite"):
        averaging.average(plans_of(tmp_path / "run", ["0ba", "infba"]), target, force=force)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out", "run"] if force else ["run"])


@pytest.mark.slow
def test_force_exchanges_the_whole_folder(tmp_path: Path):
    """The averages that are asked for now are all that is in it afterwards."""
    write_hf_run(tmp_path / "run", [100, 200])
    target = parse_target(tmp_path / "out")
    averaging.average(plans_of(tmp_path / "run", ["50ba", "100ba"]), target)
    with pytest.raises(OutputError, match="out: exists already"):
        averaging.average(plans_of(tmp_path / "run", ["100ba", "300ba"]), target)
    averaging.average(plans_of(tmp_path / "run", ["100ba", "300ba"]), target, force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ema-100ba", "ema-300ba"]
    single = parse_target(tmp_path / "out")
    averaging.average(plans_of(tmp_path / "run", ["100ba"]), single, force=True)
    assert "model.safetensors" in contents(tmp_path / "out")


def test_a_file_put_among_several_averages_meanwhile_is_kept(tmp_path: Path):
    """A file of the user's that appears in the folder while the averages are made is not replaced with them."""
    write_torch_run(tmp_path / "run", [100, 200])
    target = parse_target(tmp_path / "out")
    averaging.average(plans_of(tmp_path / "run", ["50ba", "100ba"]), target)

    def report(*_: int) -> None:
        (tmp_path / "out" / "notes.txt").write_text("mine")

    with pytest.raises(OutputError, match=r"holds 'notes\.txt', which ema-cli did not write there"):
        averaging.average(plans_of(tmp_path / "run", ["20ba", "30ba"]), target, force=True, progress=report)
    weights = ["ema-100ba.safetensors", "ema-50ba.safetensors"]
    beside = [name + suffix for name in weights for suffix in (".manifest.json", ".sha256")]
    assert sorted(contents(tmp_path / "out")) == sorted([*weights, *beside, "notes.txt"])


def test_the_space_for_all_of_them_is_asked_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two outputs of which one would fit are refused before anything is read."""
    write_torch_run(tmp_path / "run", [100, 200])
    plans = plans_of(tmp_path / "run", ["50ba", "100ba"])
    alone = preparing.prepare(plans[:1], parse_target(tmp_path / "x.safetensors"), force=False)
    free = alone.bytes_to_write + 10
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, free, free, free, 9, 9, 9, 9, 9)))
    with pytest.raises(OutputError, match=rf"out: needs \d+ bytes, but {free} are free"):
        averaging.average(plans, parse_target(tmp_path / "out"))


def test_averages_in_the_run_s_folder_are_passed_over(tmp_path: Path):
    """A folder of several averages, wherever in the run's folder, does not enter the next one."""
    for kind, write in (("hf", write_hf_run), ("pt", write_torch_run)):
        run = tmp_path / kind
        write(run, [100, 200])
        plans = plans_of(run, ["50ba", "100ba"])
        averaging.average(plans, Target(run / default_target(plans).path, is_folder=True))
        found = open_run([run])
        assert len(found.checkpoints) == 2
        inside = [f"ema-50ba-100ba/ema-{each}{'' if kind == 'hf' else '.safetensors'}" for each in ("50ba", "100ba")]
        assert {each.name: each.reason for each in found.passed_over} == dict.fromkeys(inside, "averaged by ema-cli")
        with pytest.raises(RunError, match="is averaged already"):
            preparing.refuse_averaged(plans_of(run / inside[0], ["1ba"])[0])


def test_newest_checkpoints_of_different_tensors_are_refused(tmp_path: Path):
    """What --copy lets differ between checkpoints cannot differ between the ends of two averages."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    torch.save({"model": {**make_tensors(300), "extra": torch.zeros(2)}, "step": 300}, tmp_path / "run" / "step-300.pt")
    plans = plans_of(tmp_path / "run", ["100ba", "0ba"], copy=("extra",))
    averaging.average(plans, parse_target(tmp_path / "out"))
    plans = plans_of(tmp_path / "run", ["100ba", "infba"], copy=("extra",))
    with pytest.raises(RunError, match=r"step-100\.pt: 'extra' has not the types, or the shape") as raised:
        averaging.average(plans, parse_target(tmp_path / "no"))
    assert raised.value.hint == "average them one by one"


def test_float_types_that_only_some_averages_meet_are_refused(tmp_path: Path):
    """With --dtype the arithmetic follows the types that enter: in one pass it would follow those of the others."""
    (tmp_path / "run").mkdir()
    for step, dtype in ((1, torch.float64), (2, torch.bfloat16), (3, torch.bfloat16)):
        values = torch.arange(9, dtype=dtype) * step
        save_file({"weight": values}, tmp_path / "run" / f"step-{step}.safetensors")
    plans = plans_of(tmp_path / "run", ["1ba", "2ba"])
    averaging.average(plans, parse_target(tmp_path / "out"), dtype=DTYPES["BF16"])
    plans = plans_of(tmp_path / "run", ["1ba", "0ba"])
    with pytest.raises(RunError, match="'weight' has not the types"):
        averaging.average(plans, parse_target(tmp_path / "no"), dtype=DTYPES["BF16"])


def test_plans_are_of_one_run(tmp_path: Path):
    """Only one run has an order that all plans share."""
    write_torch_run(tmp_path / "run", [100, 200])
    plans = [plans_of(tmp_path / "run", [each])[0] for each in ("1ba", "2ba")]
    with pytest.raises(RunError, match="the plans are of several runs"):
        averaging.average(plans, parse_target(tmp_path / "out"))


def test_twins_are_compared_for_all_of_them(tmp_path: Path):
    """Two checkpoints with one clock that differ are refused, whichever average they would enter."""
    write_torch_run(tmp_path / "run", [100, 200])
    torch.save({"model": make_tensors(5), "step": 200}, tmp_path / "run" / "last.pt")
    with pytest.raises(RunError, match=r"last\.pt: has the same clock as step-200\.pt"):
        averaging.average(plans_of(tmp_path / "run", ["infba", "50ba"]), parse_target(tmp_path / "out"))


def test_mixed_units_have_a_plan_each(tmp_path: Path):
    """Batches and epochs side by side: each half-life has its own events and its own checkpoints."""
    write_hf_run(tmp_path / "run", [50, 100, 150, 200], epoch_length=100)
    done = check_each_alone(tmp_path / "run", tmp_path, ["100ba", "1ep", "0.5ep"], "ema-{half_life}.safetensors")
    assert [output.target.path.name for output in done.outputs] == [
        f"ema-{each}.safetensors" for each in ("100ba", "1ep", "0.5ep")
    ]


def test_many_shards_of_many_averages_need_few_descriptors_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More output files than the soft limit on open files allows: it is raised, as far as the hard one."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for outputs in (8, 1000, 100_000):
        files.allow_descriptors(outputs)
    files.allow_descriptors(500, twice=True)
    assert set_to == [(1256, 4096), (4096, 4096), (1256, 4096)]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_and_memory_do_not_show(tmp_path: Path, threads: int):
    """Large tensors, cut into blocks in many ways: equal bytes."""
    (tmp_path / "run").mkdir()
    random = np.random.default_rng(2)
    for step in range(1, 6):
        values = random.standard_normal(700_001).astype(np.float32)
        save_file({"weight": torch.from_numpy(values).bfloat16()}, tmp_path / "run" / f"step-{step}.safetensors")
    plans = plans_of(tmp_path / "run", ["1ba", "2ba", "infba"])
    for name in ("default", "large", "small"):
        most = {"default": None, "large": 1 << 40, "small": averaging.peak_bytes() + (36 << 20)}[name]
        averaging.average(plans, parse_target(tmp_path / name), threads=threads, max_memory=most)
    assert contents(tmp_path / "default") == contents(tmp_path / "large") == contents(tmp_path / "small")
    averaging.average(plans, parse_target(tmp_path / "again"), threads=2)
    assert contents(tmp_path / "default") == contents(tmp_path / "again")
    last = load_file(tmp_path / "again" / "ema-infba.safetensors")["weight"]
    assert torch.equal(last, load_file(tmp_path / "run" / "step-1.safetensors")["weight"])


def test_too_little_memory_says_how_much_is_needed(tmp_path: Path):
    """One usage error with the figure that would do; with it, it does."""
    write_torch_run(tmp_path / "run", [100, 200])
    plans = plans_of(tmp_path / "run", ["50ba", "100ba"])
    with pytest.raises(UsageError, match=r"max_memory=: 1 MB are too few; this average needs \d+ MB") as raised:
        averaging.average(plans, parse_target(tmp_path / "out"), max_memory=10**6)
    assert not (tmp_path / "out").exists()
    needed = int((raised.value.hint or "").removeprefix("max_memory='").removesuffix("MB'"))
    averaging.average(plans, parse_target(tmp_path / "out"), max_memory=(needed + 2) * 10**6)


def test_a_nan_is_in_the_manifest_of_the_average_that_has_it_alone(tmp_path: Path):
    """A NaN that only one of the averages has is in the manifest of that one alone, as if it were made alone."""
    run = tmp_path / "run"
    run.mkdir()
    mask = torch.tensor([float("-inf"), 0.0])
    for step in (100, 200):
        bad = torch.tensor([float("nan") if step == 100 else 1.0, 2.0])
        tied = {"mask": mask.clone(), "weight": bad}
        save_file(tied, run / f"step-{step}.safetensors")
    out = parse_target(tmp_path / "out")
    averaging.average(plans_of(run, ["0ba", "100ba"]), out, allow_non_finite=True)
    for law, odd in (("0ba", {"mask"}), ("100ba", {"mask", "weight"})):
        manifest = json.loads((tmp_path / "out" / f"ema-{law}.safetensors.manifest.json").read_text())
        assert {each["name"] for each in manifest["tensors"] if each["non_finite"]} == odd
        assert ("'weight' holds NaN or infinity" in manifest["warnings"]) == (law == "100ba")


def test_a_mask_under_two_names_is_told_under_both(tmp_path: Path):
    """Tied tensors that hold an equal infinity in all checkpoints are both told of, so that verify lets both pass."""
    run = tmp_path / "run"
    run.mkdir()
    for step in (100, 200):
        mask = torch.tensor([float("-inf"), float(step)])
        torch.save({"model": {"a": mask, "b": mask}, "step": step}, run / f"step-{step}.pt")
    averaging.average(plans_of(run, ["100ba"]), parse_target(tmp_path / "x.safetensors"))
    manifest = json.loads((tmp_path / "x.safetensors.manifest.json").read_text())
    assert [each["non_finite"] for each in manifest["tensors"]] == [True, True]

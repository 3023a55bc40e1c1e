"""The pipeline from run to file, in process."""

from __future__ import annotations

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ema_cli import __version__, averaging
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, OutputError, RunError, Unreadable, UsageError
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import open_run, read_run
from ema_cli.writing import files
from ema_cli.writing.target import Target, default_target, parse_target
from tests.conftest import make_tensors, oracle, write_hf_run, write_torch_run


def plan_of(folder: Path, half_life: str = "200ba", **options: object) -> Plan:
    return make_plan(open_run([folder]), Recipe(half_life=Time.parse(half_life), **options))  # type: ignore[arg-type]


def average(plan: Plan, path: Path, **options: object) -> averaging.Result:
    return averaging.average(plan, parse_target(path), **options)  # type: ignore[arg-type]


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(path.relative_to(folder).as_posix().encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def test_a_torch_run_becomes_one_file_that_loads(tmp_path: Path):
    """Plain dicts average to a file that the official reader loads, with the weights of the plan."""
    saved = write_torch_run(tmp_path / "run", [100, 200, 300])
    result = average(plan_of(tmp_path / "run"), tmp_path / "x.safetensors")
    expected = oracle(saved, [0.5, 1 - 2**-0.5 - (1 - 2**-0.5) * (1 - 2**-0.5), 1 - 2**-0.5])
    assert plan_of(tmp_path / "run").weights == pytest.approx([0.5, 2**-0.5 - 0.5, 1 - 2**-0.5])
    loaded = load_file(tmp_path / "x.safetensors")
    assert set(loaded) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-6, atol=1e-6)
    assert (result.tensors_averaged, result.tensors_copied) == (2, 1)
    assert result.bytes_read == 3 * 16 * 4 + 8
    assert result.bytes_written == (tmp_path / "x.safetensors").stat().st_size


def test_metadata_say_how_it_was_averaged(tmp_path: Path):
    """`format: pt` for transformers, and a record of law, checkpoints, clocks and weights: no path, no time."""
    write_torch_run(tmp_path / "run", [100, 200])
    average(plan_of(tmp_path / "run", "100ba", start=Time.parse("50ba")), tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    record = json.loads(metadata["ema_cli"])
    assert record == {
        "version": __version__,
        "half_life": "100ba",
        "update_interval": "1ba",
        "start": "50ba",
        "checkpoints": [["step-100.pt", "100ba", 0.5], ["step-200.pt", "200ba", 0.5]],
    }
    assert str(tmp_path) not in metadata["ema_cli"]


def test_equal_inputs_give_equal_bytes(tmp_path: Path):
    """In another folder, at another time, with other threads: the same file."""
    sums = set()
    for number in (1, 2):
        folder = tmp_path / str(number)
        write_torch_run(folder / "run", [100, 200, 300])
        average(plan_of(folder / "run"), folder / "x.safetensors", threads=number)
        sums.add(hashlib.sha256((folder / "x.safetensors").read_bytes()).hexdigest())
    assert len(sums) == 1


def test_a_hugging_face_run_becomes_a_folder(tmp_path: Path):
    """Tensors and side files, config.json untouched; no optimizer, RNG, trainer state or arguments."""
    saved = write_hf_run(tmp_path / "run", [100, 200, 300])
    before = digest(tmp_path / "run")
    plan = plan_of(tmp_path / "run")
    assert default_target([plan]) == Target(Path("ema-200ba"), is_folder=True)
    average(plan, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "ema-manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    newest = tmp_path / "run" / "checkpoint-300"
    assert (tmp_path / "out" / "config.json").read_bytes() == (newest / "config.json").read_bytes()
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(loaded, oracle(saved, plan.weights), rtol=1e-6, atol=1e-6)
    assert digest(tmp_path / "run") == before


def test_dtype_is_written_and_said(tmp_path: Path):
    """--dtype converts the floating tensors, and config.json says so."""
    saved = write_hf_run(tmp_path / "run", [100, 200])
    plan = plan_of(tmp_path / "run")
    average(plan, tmp_path / "out", dtype=DTYPES["BF16"])
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: str(tensor.dtype) for name, tensor in loaded.items()} == {
        "layer.weight": "torch.bfloat16",
        "layer.bias": "torch.bfloat16",
        "norm.num_batches_tracked": "torch.int64",
    }
    expected = oracle(saved, plan.weights)
    torch.testing.assert_close(loaded["layer.bias"].float(), expected["layer.bias"], rtol=2**-8, atol=0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], parts: dict[str, str]) -> None:
    for shard in set(parts.values()):
        save_file({name: tensors[name] for name in tensors if parts[name] == shard}, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": parts}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_shards_stay_as_the_newest_has_them_with_the_same_bytes(tmp_path: Path):
    """The output is sharded as the newest checkpoint is; each tensor has the bytes it has in one file."""
    parts = {
        "layer.weight": "model-00001-of-00002.safetensors",
        "layer.bias": "model-00002-of-00002.safetensors",
        "norm.num_batches_tracked": "model-00002-of-00002.safetensors",
    }
    saved = write_hf_run(tmp_path / "run", [100, 200])
    average(plan_of(tmp_path / "run"), tmp_path / "single.safetensors")
    write_shards(tmp_path / "run" / "checkpoint-200", saved[1], parts)
    average(plan_of(tmp_path / "run"), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_parameters": 17, "total_size": 72}, "weight_map": parts}
    single = load_file(tmp_path / "single.safetensors")
    for name, shard in parts.items():
        assert torch.equal(load_file(tmp_path / "out" / shard)[name], single[name])
    average(plan_of(tmp_path / "run"), tmp_path / "out", force=True)


def test_tied_tensors_come_out_under_each_name(tmp_path: Path):
    """A state dict with two names for one tensor keeps both, each with its own bytes."""
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        shared = torch.full((3,), float(step))
        torch.save({"model": {"head": shared, "embed": shared}, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    average(plan_of(tmp_path / "run", "1ba"), tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded["head"].tolist() == loaded["embed"].tolist() == [1.5, 1.5, 1.5]


def test_transposed_and_sliced_tensors_come_out_right(tmp_path: Path):
    """Views into larger storages average to what torch sees through them."""
    (tmp_path / "run").mkdir()
    saved = []
    for step in (1, 2):
        base = make_tensors(step)["layer.weight"]
        tensors = {"transposed": base.t(), "sliced": base[1:3, ::2], "expanded": base[:1].expand(5, 3)}
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
        saved.append(tensors)
    plan = plan_of(tmp_path / "run", "1ba")
    average(plan, tmp_path / "x.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "x.safetensors"), oracle(saved, plan.weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.bias": torch.zeros(5)}, r"step-100.pt: 'layer.bias' is F32 \[5\], but F32 \[4\] in step-200.pt"),
        ({"layer.bias": torch.zeros(4).half()}, r"'layer.bias' is F16 \[4\], but F32 \[4\] in step-200.pt"),
        ({"extra": torch.zeros(2)}, r"'extra' is F32 \[2\], but step-200.pt does not have it"),
        ({"layer.bias": None}, r"'layer.bias' is missing, but F32 \[4\] in step-200.pt"),
    ],
)
def test_different_models_are_refused(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str):
    """A shape, dtype or name that differs is named on both sides, and nothing is written."""
    write_torch_run(tmp_path / "run", [100, 200])
    tensors = {name: tensor for name, tensor in {**make_tensors(100), **change}.items() if tensor is not None}
    torch.save({"model": tensors, "step": 100}, tmp_path / "run" / "step-100.pt")
    with pytest.raises(RunError, match=message):
        average(plan_of(tmp_path / "run"), tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_twins_must_be_equal(tmp_path: Path):
    """Two checkpoints with one clock count once if they are equal, and are refused if they are not."""
    write_torch_run(tmp_path / "run", [100, 200])
    torch.save({"model": make_tensors(200), "step": 200}, tmp_path / "run" / "last.pt")
    plan = plan_of(tmp_path / "run")
    assert [entry.checkpoint.name for entry in plan.entries] == ["step-100.pt", "step-200.pt"]
    average(plan, tmp_path / "x.safetensors")
    torch.save({"model": make_tensors(201), "step": 200}, tmp_path / "run" / "last.pt")
    with pytest.raises(RunError, match=r"last.pt: has the same clock as step-200.pt, but 'layer.weight' differs"):
        average(plan_of(tmp_path / "run"), tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


def test_an_average_is_not_averaged_again(tmp_path: Path):
    """What ema-cli made is refused when it is named, with the way to insist."""
    write_torch_run(tmp_path / "run", [100, 200])
    average(plan_of(tmp_path / "run"), tmp_path / "step-5.safetensors")
    run = open_run([tmp_path / "step-5.safetensors"])
    with pytest.raises(RunError, match=r"step-5.safetensors: is averaged already: ema-cli made it") as raised:
        average(make_plan(run, Recipe(half_life=Time(Fraction(1), Unit.BATCH))), tmp_path / "x.safetensors")
    assert "weights='ema'" in (raised.value.hint or "")


def test_a_checkpoint_of_no_weight_is_not_read(tmp_path: Path):
    """With half-life 0 only the newest counts: the tensors of the others may even be damaged."""
    saved = write_torch_run(tmp_path / "run", [100, 200])
    tensors = {
        "layer.weight": torch.full((4, 3), torch.nan),
        **{k: v for k, v in saved[0].items() if "weight" not in k},
    }
    torch.save({"model": tensors, "step": 100}, tmp_path / "run" / "step-100.pt")
    result = average(plan_of(tmp_path / "run", "0ba"), tmp_path / "x.safetensors")
    assert result.bytes_read == 16 * 4 + 8
    assert torch.equal(load_file(tmp_path / "x.safetensors")["layer.weight"], saved[1]["layer.weight"])


def test_an_input_that_changes_meanwhile_is_an_error(tmp_path: Path):
    """A checkpoint that is written to while it is averaged is named, and nothing is published."""
    write_torch_run(tmp_path / "run", [100, 200])
    plan = plan_of(tmp_path / "run")

    def touch(_done: int, _total: int) -> None:
        os.utime(tmp_path / "run" / "step-100.pt", (1, 1))

    with pytest.raises(CheckpointError, match=r"step-100.pt: changed while it was used"):
        average(plan, tmp_path / "x.safetensors", progress=touch)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_cut_short_meanwhile_is_an_error(tmp_path: Path):
    """A file truncated after its header was read is an error with its name, not a crash."""
    write_torch_run(tmp_path / "run", [100, 200])
    plan = plan_of(tmp_path / "run")
    os.truncate(tmp_path / "run" / "step-100.pt", 700)
    with pytest.raises(CheckpointError, match=r"step-100.pt: (ends at byte \d+ while it is read|changed)"):
        average(plan, tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_too_little_space_is_said_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the output does not fit, the error gives both numbers."""
    write_torch_run(tmp_path / "run", [100, 200])
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 9, 9, 9, 9, 9, 9, 9, 9)))
    with pytest.raises(OutputError, match=r"x.safetensors: needs \d+ bytes, but 9 are free"):
        average(plan_of(tmp_path / "run"), tmp_path / "x.safetensors")


def test_two_hundred_checkpoints_need_few_descriptors(tmp_path: Path):
    """More checkpoints than descriptors may be open are read all the same, and the average is right."""
    (tmp_path / "run").mkdir()
    values = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    for step, row in enumerate(values, 1):
        save_file({"weight": torch.from_numpy(row)}, tmp_path / "run" / f"step-{step}.safetensors")
    plan = plan_of(tmp_path / "run", "40ba")
    average(plan, tmp_path / "x.safetensors")
    expected = np.average(values.astype(np.float64), axis=0, weights=plan.weights)
    np.testing.assert_allclose(load_file(tmp_path / "x.safetensors")["weight"].numpy(), expected, atol=1e-6)
    links = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert sum(str(tmp_path) in str(each.readlink()) for each in links) <= 128


def test_a_file_put_into_the_target_meanwhile_is_kept(tmp_path: Path):
    """A file of the user's that appears in the folder while the average runs is not replaced with it."""
    write_hf_run(tmp_path / "run", [100, 200])
    average(plan_of(tmp_path / "run"), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def report(*_: int) -> None:
        (tmp_path / "out" / "notes.txt").write_text("mine")

    with pytest.raises(OutputError, match=r"notes\.txt"):
        average(plan_of(tmp_path / "run", "50ba"), tmp_path / "out", force=True, progress=report)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_an_output_that_cannot_be_read_back_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error of the disk while the finished file is checked is an output error."""
    write_torch_run(tmp_path / "run", [100, 200])

    def fail(path: Path) -> None:
        raise Unreadable("cannot be read: Input/output error", subject=path)

    monkeypatch.setattr(files, "open_file", fail)
    with pytest.raises(OutputError, match="does not read back: cannot be read: Input/output error"):
        average(plan_of(tmp_path / "run"), tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_plain_strings_say_the_same_as_types(tmp_path: Path):
    """A caller from Python needs no class of ours: paths, times, dtypes and sizes are text as on the command line."""
    write_hf_run(tmp_path / "run", [100, 200, 300])
    run = open_run(str(tmp_path / "run"), copy=["*.bias"], epoch_length="100ba")
    plan = make_plan(run, Recipe(half_life="1ep", start="100ba"))
    averaging.average(plan, str(tmp_path / "text"), dtype="bfloat16", max_shard_size="1GB", max_memory="64GB")
    typed = read_run([tmp_path / "run"], OpenOptions(ReadOptions(copy=("*.bias",)), Time.parse("100ba")))
    recipe = Recipe(half_life=Time.parse("1ep"), start=Time.parse("100ba"))
    target = parse_target(tmp_path / "types")
    averaging.average(make_plan(typed, recipe), target, dtype=DTYPES["BF16"], max_shard_size=10**9)
    text, types = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("text", "types"))
    assert text == types
    assert open_run(tmp_path / "text").checkpoints[0].tensors.specs["layer.weight"].dtype.name == "BF16"


def test_an_unknown_word_is_named_with_what_there_is(tmp_path: Path):
    """A dtype that cannot be written, and weights that are neither: as on the command line."""
    write_hf_run(tmp_path / "run", [100, 200])
    plan = make_plan(open_run(tmp_path / "run"), Recipe(half_life="100ba"))
    with pytest.raises(UsageError, match="dtype=: 'int8' cannot be written"):
        averaging.average(plan, tmp_path / "out", dtype="int8")
    with pytest.raises(UsageError, match="weights=: 'both' is neither raw nor ema"):
        open_run(tmp_path / "run", weights="both")  # type: ignore[arg-type]


def test_what_functions_return_is_shown_in_one_line(tmp_path: Path):
    """At a prompt: a run of a thousand checkpoints is no page of nested objects."""
    write_hf_run(tmp_path / "run", [100, 200, 300])
    run = open_run(tmp_path / "run")
    plan = make_plan(run, Recipe(half_life="50ba", start="200ba"))
    result = averaging.average(plan, tmp_path / "out")
    assert repr(run) == f"<Run {tmp_path / 'run'}: 3 checkpoints, 100ba to 300ba>"
    assert repr(run.checkpoints[0]).startswith("<Checkpoint checkpoint-100: 100ba")
    assert repr(plan) == f"<Plan 50ba: 2 of 3 checkpoints, {plan.effective_count:.4g} effective>"
    assert repr(plan.recipe) == "Recipe(half_life='50ba', start='200ba')"
    assert repr(result).startswith(f"<Result {tmp_path / 'out'}: 1 average, read ")


def test_a_recipe_is_shown_as_the_call_that_makes_it():
    """What is shown can be typed."""
    for recipe in (Recipe(half_life="5ba", update_interval="every"), Recipe(profile="power", sigma_rel=0.1, last=3)):
        assert eval(repr(recipe), {"Recipe": Recipe}) == recipe

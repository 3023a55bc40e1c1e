"""Adapters merged into their base model, and products averaged as A and B: beside dense arithmetic in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import average, make_plan, open_run
from ema_cli.law.recipe import Recipe
from tests.conftest import Cli
from tests.formats.adapters.adapters import (
    BEGIN,
    SHAPES,
    adapter_tensors,
    base_tensors,
    dense,
    mean,
    write_adapter,
    write_base,
    write_run,
)

HALF_LIFE = ("--half-life", "1ba")
WEIGHTS = [0.25, 0.25, 0.5]
MERGE = ("--merge-into", "base")


def names(folder: Path) -> set[str]:
    """Return what lies in a folder."""
    return {path.name for path in folder.iterdir()}


def test_merged_weights_are_rounded_once(cli: Cli, tmp_path: Path) -> None:
    """Of bfloat16, too: the float64 mean of W + scale x BA, rounded; what no adapter changes stays to the bit."""
    base = base_tensors(torch.bfloat16)
    write_base(tmp_path / "base", torch.bfloat16)
    checkpoints = write_run(tmp_path / "run")
    done = cli("average", "run", *HALF_LIFE, *MERGE, "-o", "out")
    assert done.code == 0, done
    assert "output layer tied" in done.err
    added, ours = mean([dense(each) for each in checkpoints], WEIGHTS), load_file(tmp_path / "out/model.safetensors")
    assert ours.keys() == base.keys()
    for name, delta in added.items():
        expected = torch.from_numpy(base[name].double().numpy() + delta)
        assert torch.equal(ours[name], expected.to(torch.bfloat16)), name
    heads = [adapter_tensors(step)[f"{BEGIN}head.weight"].double() for step in (1, 2, 3)]
    head = sum(weight * each for weight, each in zip(WEIGHTS, heads, strict=True))
    assert torch.equal(ours["head.weight"], head.to(torch.bfloat16))
    for name in ("layer.q.bias", "steps"):
        assert torch.equal(ours[name], base[name])
    manifest = json.loads((tmp_path / "out/ema-manifest.json").read_text())
    why = {row["name"]: row["why"] for row in manifest["tensors"]}
    assert why["layer.q.bias"] == "of the base model, as it is there"
    assert why["layer.q.weight"] is None
    assert manifest["recipe"]["merge_into"] is True
    card = (tmp_path / "out/README.md").read_text()
    assert "a base model with the weighted average of 3 checkpoints" in card
    assert "# The base model" not in card


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_dtype_is_that_of_all_floats(cli: Cli, tmp_path: Path, dtype: str) -> None:
    """With --dtype what no adapter changes is rounded, too."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, *MERGE, "--dtype", dtype, "-o", "out.safetensors").code == 0
    ours = load_file(tmp_path / "out.safetensors")
    assert {tensor.dtype for name, tensor in ours.items() if name != "steps"} == {getattr(torch, dtype)}
    assert torch.equal(ours["layer.q.bias"], torch.ones(4).to(getattr(torch, dtype)))
    assert cli("verify", "out.safetensors", "--against", "run", *MERGE).code == 0


@pytest.mark.parametrize("asked", [MERGE, ("--exact-lora", "5")], ids=lambda asked: asked[0])
def test_threads_and_memory_do_not_show(cli: Cli, tmp_path: Path, asked: tuple[str, str]) -> None:
    """Same inputs, same bytes: for any number of threads and size of blocks, and read a second time."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    for number, options in enumerate([("--threads", "1"), ("--threads", "5"), ("--max-memory", "2GB")]):
        assert cli("average", "run", *HALF_LIFE, *asked, "-o", f"out{number}", *options).code == 0
    for name in names(tmp_path / "out0") - {"ema-manifest.json", "SHA256SUMS"}:
        first = (tmp_path / "out0" / name).read_bytes()
        assert all((tmp_path / f"out{number}" / name).read_bytes() == first for number in (1, 2)), name


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"alpha_pattern": {"embed": 1, "conv": 12}}, {"lora_alpha": 0}], ids=str
)
def test_factors_give_the_average_of_the_products(cli: Cli, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With the rank of all products together A and B give their mean; each module's scale has gone into them."""
    checkpoints = write_run(tmp_path / "run", **changes)
    done = cli("average", "run", *HALF_LIFE, "--exact-lora", "6", "-o", "out")
    assert done.code == 0, done
    ours, exact = dense(tmp_path / "out"), mean([dense(each) for each in checkpoints], WEIGHTS)
    for name, delta in exact.items():
        np.testing.assert_allclose(ours[name], delta, rtol=0, atol=1e-6 * np.abs(delta).max() + 1e-30)
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    for name, (a, b) in SHAPES.items():
        assert written[BEGIN + name.format("A")].shape == (6, *a[1:])
        assert written[BEGIN + name.format("B")].shape == (b[0], 6, *b[2:])
    assert cli("verify", "out", "--against", "run").code == 0
    assert cli("verify", "out", "--against", "run", "--sample").code == 0
    assert cli("average", "run", "--recipe", "out/ema-manifest.json", "-o", "again").code == 0
    again = (tmp_path / "again/adapter_model.safetensors").read_bytes()
    assert again == (tmp_path / "out/adapter_model.safetensors").read_bytes()


def test_several_half_lives_have_factors_of_their_own(cli: Cli, tmp_path: Path) -> None:
    """In one pass, as any averages; each says how near it comes."""
    checkpoints = write_run(tmp_path / "run")
    lives = ("--half-life", "1ba", "--half-life", "1000ba")
    done = cli("average", "run", *lives, "--exact-lora", "6", "-o", "out")
    assert (done.code, "ema-1ba: A and B" in done.err, "ema-1000ba: A and B" in done.err) == (0, True, True)
    last = dense(checkpoints[-1])
    near, far = (dense(tmp_path / "out" / name) for name in ("ema-1ba", "ema-1000ba"))
    assert np.abs(near["layer.q.weight"] - last["layer.q.weight"]).max() > 0.1
    assert np.abs(near["layer.q.weight"] - far["layer.q.weight"]).max() > 0.1


def test_a_changed_factor_is_found(cli: Cli, tmp_path: Path) -> None:
    """Verify makes A and B again, and names the tensor in which a bit differs."""
    write_run(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, "--exact-lora", "2", "-o", "out").code == 0
    path = tmp_path / "out/adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = cli("verify", "out", "--against", "run")
    assert done.code == 6
    assert "is not what the checkpoints give" in done.err


@pytest.mark.parametrize("sample", [(), ("--sample",)], ids=str)
def test_another_base_model_is_found(cli: Cli, tmp_path: Path, sample: tuple[str, ...]) -> None:
    """Verify and --recipe ask for the base model, and see that it is the same."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, *MERGE, "-o", "out").code == 0
    missing = cli("verify", "out", "--against", "run", *sample)
    assert (missing.code, "say where that is: --merge-into BASE" in missing.err) == (2, True)
    assert cli("verify", "out", *MERGE).code == 2
    recipe = ("--recipe", "out/ema-manifest.json")
    assert cli("average", "run", *recipe, "-o", "again").code == 2
    tensors = base_tensors()
    tensors["conv.weight"][0, 0, 0, 0] += 1
    save_file(tensors, tmp_path / "base/model.safetensors")
    done = cli("average", "run", *recipe, *MERGE, "-o", "again")
    assert (done.code, "has changed" in done.err) == (6, True)  # by all bytes, as no sample of the inputs' shows it
    assert cli("verify", "out", "--against", "run", *MERGE, *sample).code == 6
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "base/model.safetensors")
    assert cli("average", "run", *recipe, *MERGE, "-o", "again").code == 3


def test_a_base_model_that_is_not_asked_for(cli: Cli, tmp_path: Path) -> None:
    """To repeat an average of adapters with a base model is a mistake, and said to be one."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, "-o", "out").code == 0
    done = cli("verify", "out", "--against", "run", *MERGE)
    assert (done.code, "leave it out" in done.err) == (2, True)


def test_the_plain_average_names_the_exact_ones(cli: Cli, tmp_path: Path) -> None:
    """What says that A and B are averaged each, says what averages the products; and these do not say it."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    plain = cli("average", "run", *HALF_LIFE, "-o", "plain").err
    assert "--exact-lora RANK" in plain
    assert "--merge-into BASE" in plain
    for asked in (MERGE, ("--exact-lora", "2")):
        for more in ((), ("--dry-run",)):
            assert "averaged each" not in cli("average", "run", *HALF_LIFE, *asked, "-o", "exact", "--force", *more).err


REFUSED: dict[str, tuple[dict[str, torch.Tensor] | None, dict[str, Any], str]] = {
    "shape": ({f"{BEGIN}head.weight": torch.zeros(10, 4)}, {}, "is F32 [10, 4], but F32 [9, 4] of"),
    "unknown": ({f"{BEGIN}score.weight": torch.zeros(2, 4)}, {}, "'score.weight' is changed, but is no tensor of"),
    "tokens": ({f"{BEGIN}embed.trainable_tokens_delta": torch.zeros(2, 4)}, {}, "is of no pair of A and B"),
    "module": (
        {f"{BEGIN}k.lora_A.weight": torch.zeros(2, 5), f"{BEGIN}k.lora_B.weight": torch.zeros(4, 2)},
        {},
        "'k.weight' is changed, but is no tensor of",
    ),
    "product": (
        {f"{BEGIN}layer.q.lora_A.weight": torch.zeros(2, 6)},
        {},
        "'layer.q' is changed by [4, 6], but is F32 [4, 5] of",
    ),
    "integers": (
        {f"{BEGIN}steps.lora_A.weight": torch.zeros(2, 1), f"{BEGIN}steps.lora_B.weight": torch.zeros(1, 2)},
        {},
        "is no tensor of",
    ),
    "replication": (None, {"layer_replication": [[0, 1], [0, 1]]}, "its layer_replication asks for more"),
    "dora": ({f"{BEGIN}layer.q.lora_magnitude_vector": torch.zeros(4)}, {}, "is of no pair of A and B"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_do_not_fit_are_refused(cli: Cli, tmp_path: Path, case: str) -> None:
    """Names and shapes that the base model does not have: one error that names both, and nothing is written."""
    tensors, changes, told = REFUSED[case]
    write_base(tmp_path / "base")
    for step in (1, 2):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", {**adapter_tensors(step), **(tensors or {})}, **changes)
    done = cli("average", "run", *HALF_LIFE, *MERGE, "-o", "out")
    assert done.code in (3, 4), done
    assert told in done.err
    assert names(tmp_path) == {"base", "run"}


def test_what_is_no_base_model_is_refused(cli: Cli, tmp_path: Path) -> None:
    """An adapter, nothing, and weights of a model that are packed."""
    run = write_run(tmp_path / "run")
    assert "is an adapter" in cli("average", "run", *HALF_LIFE, "--merge-into", str(run[0]), "-o", "out").err
    assert cli("average", "run", *HALF_LIFE, "--merge-into", "nowhere", "-o", "out").code == 2
    write_base(tmp_path / "base")
    save_file(
        {**base_tensors(), "layer.q.weight": torch.zeros(4, 5, dtype=torch.int8)}, tmp_path / "base/model.safetensors"
    )
    done = cli("average", "run", *HALF_LIFE, *MERGE, "-o", "out")
    assert (done.code, "'layer.q.weight' is changed, but is I8" in done.err) == (4, True)
    save_file(base_tensors(), tmp_path / "base/model.safetensors")
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(tmp_path / "base", tmp_path / "run/checkpoint-1")
    for asked in (MERGE, ("--exact-lora", "2")):
        done = cli("average", "run", "--last", "1", *HALF_LIFE, *asked, "-o", "out")
        assert "is no LoRA adapter that PEFT wrote: it has no adapter_config.json" in done.err, done


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--exact-lora", "0"), "--exact-lora: 0 is not a number of rows"),
        (("--exact-lora", "7"), "--exact-lora 6"),
        (("--exact-lora", "1000000000"), "more than the sum of the products can have"),
        (("--exact-lora", "2", "--like-input"), "leave out one"),
        (("--exact-lora", "2", "--allow-non-finite"), "cannot be factored"),
        (("--exact-lora", "2", "-o", "out.safetensors"), "adapter_config.json beside them"),
        (("--exact-lora", "2", "-o", "dcp:out"), "adapter_config.json beside them"),
        (("--exact-lora", "2", "--copy", "*lora_A*"), "leave out one"),
        (("--exact-lora", "2", *MERGE), "--exact-lora: excludes --merge-into: whole models are written then"),
        ((*MERGE, "--like-input"), "read only"),
        ((*MERGE, "--copy", "layer.q.*"), "'layer.q.weight' is made of the base model and the adapters"),
        ((*MERGE, "--copy", "layer.q.*", "--dtype", "bfloat16"), "there is nothing to copy"),
        ((*MERGE, "--from", "stored"), "is for raw checkpoints"),
    ],
    ids=str,
)
def test_options_that_exclude_each_other(cli: Cli, tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    """What makes no sense together is said, with what to leave out."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    done = cli("average", "run", *HALF_LIFE, *options)
    assert done.code in (2, 4, 5), done
    assert told in done.err
    assert names(tmp_path) == {"base", "run"}


@pytest.mark.parametrize("asked", [MERGE, ("--exact-lora", "2")], ids=lambda asked: asked[0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(cli: Cli, tmp_path: Path, asked: tuple[str, str], value: float) -> None:
    """With its checkpoint and tensor; an infinity that is in all checkpoints has no factors either."""
    write_base(tmp_path / "base")
    for step in (1, 2):
        tensors = adapter_tensors(step)
        tensors[f"{BEGIN}layer.q.lora_B.weight"][1, 1] = value
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", tensors)
    done = cli("average", "run", *HALF_LIFE, *asked, "-o", "out")
    assert done.code == 6, done
    assert "layer.q" in done.err
    assert names(tmp_path) == {"base", "run"}


def test_a_base_model_that_is_not_finite_is_named(cli: Cli, tmp_path: Path) -> None:
    """Not the checkpoint that is merged into it, nor the option that would leave that out."""
    write_base(tmp_path / "base")
    file = next((tmp_path / "base").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["layer.q.weight"][1, 1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    for step in (1, 2):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", adapter_tensors(step))
    done = cli("average", "run", *HALF_LIFE, *MERGE, "-o", "out")
    assert done.code == 6, done
    assert "base: 'layer.q.weight' is not finite at element" in done.err
    assert "--exclude" not in done.err
    assert "--merge-into" in done.err


def test_from_python(tmp_path: Path) -> None:
    """`open_run(merge_into=...)` and `average(exact_lora=...)` do the same."""
    write_base(tmp_path / "base")
    checkpoints = write_run(tmp_path / "run")
    recipe = Recipe(half_life="1ba")
    average(make_plan(open_run(tmp_path / "run", merge_into=tmp_path / "base"), recipe), tmp_path / "merged.pt")
    result = average(make_plan(open_run(tmp_path / "run"), recipe), tmp_path / "exact", exact_lora=6)
    assert "A and B of rank 6 come within 0.00%" in " ".join(result.notes)
    added = mean([dense(each) for each in checkpoints], WEIGHTS)
    merged, base = torch.load(tmp_path / "merged.pt"), base_tensors()
    for name, delta in added.items():
        np.testing.assert_allclose(merged[name].double() - base[name].double(), delta, rtol=0, atol=1e-5)


def test_base_model_as_a_part(cli: Cli, tmp_path: Path) -> None:
    """A base model whose file leaves out what the adapter's names begin with, as models without their head do."""
    write_base(tmp_path / "base")
    for step in (1, 2):
        tensors = {name.replace(BEGIN, f"{BEGIN}transformer."): each for name, each in adapter_tensors(step).items()}
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", tensors)
    assert cli("average", "run", *HALF_LIFE, *MERGE, "-o", "out").code == 0
    assert load_file(tmp_path / "out/model.safetensors").keys() == base_tensors().keys()


def test_what_no_adapter_changes_may_be_copied(cli: Cli, tmp_path: Path) -> None:
    """A pattern is of names of the base model: with --dtype, what matches keeps its type; what matches none is told."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    copy = ("--copy", "layer.q.bias", "--copy", "*lora_A*", "--dtype", "float16")
    done = cli("average", "run", *HALF_LIFE, *MERGE, *copy, "-o", "out")
    assert (done.code, "--copy '*lora_A*' matches no tensor" in done.err, "layer.q.bias" in done.err) == (
        0,
        True,
        False,
    )
    ours = load_file(tmp_path / "out/model.safetensors")
    assert (ours["layer.q.bias"].dtype, ours["layer.q.weight"].dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize("asked", [("--on", "processes=1"), ("--part", "0/1")], ids=str)
def test_workers_make_the_same_file(cli: Cli, tmp_path: Path, asked: tuple[str, str]) -> None:
    """An adapter and its base model go to them; the bytes are those of one process."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    for number, more in enumerate([(), asked]):
        done = cli("average", "run", *HALF_LIFE, *MERGE, *more, "-o", f"out{number}.safetensors")
        assert done.code == 0, done
    assert (tmp_path / "out0.safetensors").read_bytes() == (tmp_path / "out1.safetensors").read_bytes()


def test_tied_weights_change_together(cli: Cli, tmp_path: Path) -> None:
    """Where the base model's file holds two names as one tensor, both are changed; and not twice."""
    embed = base_tensors()["embed.weight"]
    tied = {"head.weight": embed, "other": torch.ones(2), "embed.weight": embed}
    torch.save(tied, tmp_path / "base.pt")
    own = [BEGIN + SHAPE.format(part) for SHAPE in ("embed.lora_embedding_{}",) for part in "AB"]
    runs = [write_adapter(tmp_path / f"run/checkpoint-{step}", _only(adapter_tensors(step), own)) for step in (1, 2)]
    assert cli("average", "run", *HALF_LIFE, "--merge-into", "base.pt", "-o", "out.pt").code == 0
    ours = torch.load(tmp_path / "out.pt")
    assert torch.equal(ours["embed.weight"], ours["head.weight"])
    deltas = [_embedding(folder) for folder in runs]
    expected = embed.double().numpy() + mean(deltas, [0.5, 0.5])["embed.weight"]
    assert torch.equal(ours["head.weight"], torch.from_numpy(expected).float())
    for step in (1, 2):
        shutil.rmtree(tmp_path / f"run/checkpoint-{step}")
        write_adapter(tmp_path / f"run/checkpoint-{step}", _only(adapter_tensors(step), [*own, f"{BEGIN}head.weight"]))
    done = cli("average", "run", *HALF_LIFE, "--merge-into", "base.pt", "-o", "again.pt")
    assert (done.code, "'embed.weight' of the base model twice: as 'head.weight', too" in done.err) == (3, True)


def _only(tensors: dict[str, torch.Tensor], wanted: list[str]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in wanted}


def _embedding(folder: Path) -> dict[str, Any]:
    stored = load_file(folder / "adapter_model.safetensors")
    a, b = (stored[f"{BEGIN}embed.lora_embedding_{part}"].double().numpy() for part in "AB")
    return {"embed.weight": 3 * (b @ a).T}


def test_two_modules_are_not_one_tensor(cli: Cli, tmp_path: Path) -> None:
    """An encoder's and a decoder's adapter for a base model that is one of the two: neither is lost in silence."""
    save_file({"q.weight": torch.zeros(4, 5)}, tmp_path / "base.safetensors")
    for step in (1, 2):
        tensors = adapter_tensors(step)
        parts = {part: tensors[f"{BEGIN}layer.q.lora_{part}.weight"] for part in "AB"}
        write_adapter(
            tmp_path / f"run/checkpoint-{step}",
            {
                f"{BEGIN}{side}.q.lora_{part}.weight": parts[part].clone()
                for side in ("encoder", "decoder")
                for part in "AB"
            },
        )
    done = cli("average", "run", *HALF_LIFE, "--merge-into", "base.safetensors", "-o", "out")
    assert (done.code, "changes 'q.weight' of the base model twice" in done.err) == (3, True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [2, 6])
def test_the_error_that_is_told_is_that_of_what_is_written(cli: Cli, tmp_path: Path, dtype: str, rank: int) -> None:
    """A and B are rounded to their dtype, which moves their product, too; bfloat16 most."""
    checkpoints = write_run(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, "--exact-lora", str(rank), "--dtype", dtype, "-o", "out").code == 0
    ours, exact = dense(tmp_path / "out"), mean([dense(each) for each in checkpoints], WEIGHTS)
    off = {name: float(np.linalg.norm(ours[name] - delta)) for name, delta in exact.items()}
    norms = {name: float(np.linalg.norm(delta)) for name, delta in exact.items()}
    told = json.loads((tmp_path / "out/ema-manifest.json").read_text())["exact_lora"]
    assert told["relative_error"] == pytest.approx(
        np.hypot.reduce([*off.values()]) / np.hypot.reduce([*norms.values()]), rel=0.01
    )
    assert told["furthest_error"] == pytest.approx(max(off[name] / norms[name] for name in off), rel=0.01)
    assert "averaged each" not in cli("inspect", "out").out


def test_an_alpha_with_a_point_is_a_number(cli: Cli, tmp_path: Path) -> None:
    """6.0 is 6, also beside it in other checkpoints of the run; 1.5 is one and a half."""
    write_run(tmp_path / "run")
    write_adapter(tmp_path / "run/checkpoint-4", adapter_tensors(4), lora_alpha=6.0, alpha_pattern={"conv": 1.5})
    shutil.rmtree(tmp_path / "run/checkpoint-1")
    write_adapter(tmp_path / "run/checkpoint-1", adapter_tensors(1), lora_alpha=6, alpha_pattern={"conv": 1.5})
    for name in ("checkpoint-2", "checkpoint-3"):
        shutil.rmtree(tmp_path / "run" / name)
    assert cli("average", "run", *HALF_LIFE, "--exact-lora", "4", "-o", "out").code == 0
    ours = dense(tmp_path / "out")
    exact = mean([dense(tmp_path / f"run/checkpoint-{step}") for step in (1, 4)], [0.125, 0.875])
    for name, delta in exact.items():
        np.testing.assert_allclose(ours[name], delta, rtol=0, atol=1e-6 * np.abs(delta).max())

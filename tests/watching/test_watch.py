"""Watching from Python: what `average` gives, each checkpoint once, and what is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import Recipe, average, make_plan, open_run, watch
from ema_cli.errors import CheckpointError, EmaError, NonFiniteError, OutputError, RunError, UsageError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import manifest_path
from ema_cli.release.published import find_averages
from ema_cli.release.verify import verify
from ema_cli.runs.stored import open_stored
from ema_cli.watching.journal import Journal
from ema_cli.watching.telling import Entered, Listener
from ema_cli.watching.watch import WaitingKeywords
from tests.conftest import make_tensors, write_hf_run, write_torch_run

STEPS = range(100, 1100, 100)
ONCE: WaitingKeywords = {"once": True, "settle": 0.05, "patience": 600.0}
LAWS = {
    "half-life": [Recipe(half_life="200ba")],
    "two": [Recipe(half_life="150ba"), Recipe(half_life="600ba")],
    "interval": [Recipe(half_life="200ba", update_interval="200ba")],
    "start": [Recipe(half_life="200ba", start="300ba")],
    "smoothing": [Recipe(smoothing=0.7)],
    "power": [Recipe(profile="power", sigma_rel=0.1)],
    "uniform": [Recipe(profile="uniform")],
    "nothing": [Recipe(half_life="0ba", update_interval="every")],
    "endless": [Recipe(half_life="infba")],
}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file at and below a path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_near(watched: Path, averaged: Path, near: float = 1e-6) -> None:
    """Compare all files of tensors: float32 within a share of the tensor's largest value, all else to the byte."""
    files = [path for path in averaged.rglob("*.safetensors") if path.is_file()] or [averaged]
    for path in files:
        here = watched / path.relative_to(averaged) if path != averaged else watched
        one, other = load_file(here), load_file(path)
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            if tensor.is_floating_point():
                error = (one[name].double() - tensor.double()).abs().max()
                assert error <= near * tensor.double().abs().max(), name
            else:
                assert torch.equal(one[name], tensor), name


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["torch", "hf"])
def test_it_gives_what_average_gives(law: str, kind: str, tmp_path: Path):
    """On the same files, by each law; side files and card are the same to the byte, and verify holds."""
    (write_torch_run if kind == "torch" else write_hf_run)(tmp_path / "run", STEPS)
    watched = watch(tmp_path / "run", tmp_path / "averages", LAWS[law], waiting=ONCE)
    assert watched.clock is not None
    (tmp_path / "alone").mkdir()
    run = open_run(tmp_path / "run")
    average([make_plan(run, recipe) for recipe in LAWS[law]], tmp_path / "alone" / "averages")
    assert_near(tmp_path / "averages", tmp_path / "alone" / "averages")
    mine, theirs = contents(tmp_path / "averages"), contents(tmp_path / "alone" / "averages")
    assert mine.keys() == theirs.keys()
    for name in mine:
        if name.rpartition("/")[2] in ("config.json", "tokenizer.json", "README.md"):
            assert mine[name] == theirs[name]
    assert [problem for one in find_averages([tmp_path / "averages"]) for problem in verify(one).problems] == []


def test_old_checkpoints_without_a_mark_are_no_gap(tmp_path: Path):
    """Older than the patience, and complete: they are waited for until they are settled, and nothing is told."""
    write_torch_run(tmp_path / "run", STEPS)
    for path in (tmp_path / "run").iterdir():
        os.utime(path, (0, 0))
    waiting: WaitingKeywords = {**ONCE, "settle": 1.0}
    watched = watch(tmp_path / "run", tmp_path / "average.safetensors", LAWS["half-life"], waiting=waiting)
    assert (watched.folded, watched.gaps) == (len(STEPS), ())


def test_one_after_another_gives_the_bytes_of_all_at_once(tmp_path: Path):
    """Each checkpoint is deleted as soon as it is folded; the averages are the same to the byte."""
    write_hf_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "all", LAWS["two"], waiting=ONCE)
    for step in STEPS:
        (tmp_path / "now").mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "run" / f"checkpoint-{step}", tmp_path / "now" / f"checkpoint-{step}")
        watched = watch(tmp_path / "now", tmp_path / "single", LAWS["two"], waiting=ONCE)
        assert [entered.name for entered in watched.entered] == [f"checkpoint-{step}"]
        shutil.rmtree(tmp_path / "now" / f"checkpoint-{step}")
    one, other = contents(tmp_path / "all"), contents(tmp_path / "single")
    assert one == other
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run", "now", "all", "all.watch", "single", "single.watch"}
    assert sorted(path.name for path in (tmp_path / "single.watch").iterdir()) == ["1000ba", "first.safetensors"]


def test_each_checkpoint_enters_once(tmp_path: Path):
    """A second look at the same files changes nothing."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "averages.safetensors", LAWS["half-life"], waiting=ONCE)
    before = (tmp_path / "averages.safetensors").read_bytes()
    watched = watch(tmp_path / "run", tmp_path / "averages.safetensors", LAWS["half-life"], waiting=ONCE)
    assert watched.entered == ()
    assert watched.folded == len(STEPS)
    assert (tmp_path / "averages.safetensors").read_bytes() == before


def test_a_file_that_is_written_again_and_again_enters_once_for_each_clock(tmp_path: Path):
    """Told by the clock inside it; a copy that is only newer by its time does not enter."""
    for step in STEPS:
        torch.save({"model": make_tensors(step), "step": step}, tmp_path / "ckpt.pt")
        for _ in range(2):
            watched = watch(tmp_path / "ckpt.pt", tmp_path / "average", LAWS["half-life"], waiting=ONCE)
            (tmp_path / "ckpt.pt").touch()
        assert watched.folded == step // 100
    write_torch_run(tmp_path / "run", STEPS)
    average(make_plan(open_run(tmp_path / "run"), LAWS["half-life"][0]), tmp_path / "alone")
    assert_near(tmp_path / "average", tmp_path / "alone")


def test_the_state_is_what_a_training_stores(tmp_path: Path):
    """`--from stored` reads it: first copy, both averages, their clocks and laws."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "averages", LAWS["two"], waiting=ONCE, store_every="300ba")
    stored = open_stored([tmp_path / "averages.watch"])
    assert stored.has_first_copy
    assert stored.names == ["150ba", "600ba"]
    assert stored.clocks == ["300ba", "600ba", "900ba", "1000ba"]
    assert str(stored.averages[0].began) == "100ba"
    assert [average.updates for average in stored.averages if average.clock.value == 1000] == [9, 9]


def test_the_manifest_lists_what_entered(tmp_path: Path):
    """Each with clock, weight and fingerprint, as the manifest of `average` has them; and the gaps."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "watched.safetensors", LAWS["half-life"], waiting=ONCE)
    average(make_plan(open_run(tmp_path / "run"), LAWS["half-life"][0]), tmp_path / "averaged.safetensors")
    watched, averaged = (
        read_manifest(manifest_path(tmp_path / f"{name}.safetensors", is_folder=False))
        for name in ("watched", "averaged")
    )
    assert watched["inputs"] == averaged["inputs"]
    assert watched["recipe"] == averaged["recipe"]
    assert watched["tensors"] == averaged["tensors"]
    assert watched["watch"] == {"gaps": []}


def test_frozen_values_stay_to_the_bit(tmp_path: Path):
    """As a fold of them all keeps them."""
    frozen = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    (tmp_path / "run").mkdir()
    for step in STEPS:
        tensors = {"frozen": frozen, "moving": torch.randn(9)}
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    watch(tmp_path / "run", tmp_path / "average.safetensors", LAWS["half-life"], waiting=ONCE)
    assert torch.equal(load_file(tmp_path / "average.safetensors")["frozen"], frozen)


def test_bfloat16_is_at_most_one_step_off_in_one_value_of_a_thousand(tmp_path: Path):
    """As each average is kept in float32, and rounded once when it is written."""
    random = torch.Generator().manual_seed(2)
    value = torch.randn(100_000, generator=random)
    (tmp_path / "run").mkdir()
    for step in range(10, 410, 10):
        value = value + 0.01 * torch.randn(100_000, generator=random)
        save_file({"w": value.bfloat16()}, tmp_path / "run" / f"step-{step}.safetensors")
    recipe = Recipe(half_life="100ba")
    watch(tmp_path / "run", tmp_path / "watched.safetensors", recipe, waiting=ONCE)
    average(make_plan(open_run(tmp_path / "run"), recipe), tmp_path / "averaged.safetensors")
    one, other = (load_file(tmp_path / f"{name}.safetensors")["w"] for name in ("watched", "averaged"))
    steps = (one.view(torch.int16).int() - other.view(torch.int16).int()).abs()
    assert steps.max() <= 1
    assert (steps > 0).double().mean() <= 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipes": Recipe(profile="linear")}, "each new checkpoint changes the shares"),
        ({"recipes": Recipe(profile="1-sqrt", window="500ba")}, "each new checkpoint changes the shares"),
        ({"recipes": Recipe(half_life="5ba", last=3)}, "needs checkpoints that are not there yet"),
        ({"recipes": Recipe(half_life="5ba", bias_correction=True)}, "needs checkpoints that are not there yet"),
        ({"recipes": [Recipe(half_life="5ba"), Recipe(half_life="5ep")]}, "different update intervals"),
        ({"recipes": []}, "which average"),
        ({"recipes": Recipe(half_life="5ba"), "store_every": "0ba"}, "no training time"),
        ({"recipes": Recipe(half_life="5ba"), "waiting": {"every": 0}}, "no number of seconds"),
        ({"recipes": Recipe(half_life="5ba"), "allow_non_finite": True}, "allow_non_finite=: is for one average"),
        ({"recipes": Recipe(half_life="5ba"), "exact_lora": 2}, "exact_lora=: is for one average"),
    ],
)
def test_what_needs_the_future_or_makes_no_sense_is_refused(options: dict[str, object], words: str, tmp_path: Path):
    """Before anything is looked at."""
    with pytest.raises(UsageError, match=words):
        watch(tmp_path / "no", tmp_path / "out", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("ema-{half_life}.pt", "names no new folder"),
        ("../ema-{half_life}", "names no new folder"),
        ("/ema-{half_life}", "names no new folder"),
        ("s3://bucket/ema-{half_life}.pt", "names no new folder"),
        ("averages/ema-{half_life}-{clock}.pt", "is replaced at each clock"),
    ],
)
@pytest.mark.parametrize("law", ["half-life", "two"])
def test_a_pattern_names_a_folder_beside_which_the_rest_can_lie(target: str, words: str, law: str, tmp_path: Path):
    """And no clock: what lies there at a later one might be somebody else's."""
    with pytest.raises(UsageError, match=words):
        watch(tmp_path / "no", target, LAWS[law])


def test_memory_is_what_the_caller_says(tmp_path: Path):
    """As of the command: what is too little is an error that says how much is needed."""
    write_torch_run(tmp_path / "run", STEPS[:2])
    with pytest.raises(UsageError, match=r"max_memory=: 1 MB are too few; these averages need \d+ MB"):
        watch(tmp_path / "run", tmp_path / "out", LAWS["two"], waiting=ONCE, max_memory="1MB")
    assert watch(tmp_path / "run", tmp_path / "out", LAWS["two"], waiting=ONCE, max_memory="64GB").folded == 2


@pytest.mark.parametrize("name", ["200ba.safetensors", "rest/200ba.safetensors", "watch.json"])
def test_a_moment_that_is_damaged_is_an_error_that_says_how_to_go_on(name: str, tmp_path: Path):
    """Not to wait for it, as for a checkpoint; without the moment the watch begins anew."""
    write_torch_run(tmp_path / "run", STEPS[:3])
    watch(tmp_path / "run", tmp_path / "out", LAWS["half-life"], waiting=ONCE)
    moment = tmp_path / "out.watch" / "300ba"
    content = (moment / name).read_bytes()
    (moment / name).write_bytes(content[:-5])
    write_torch_run(tmp_path / "run", STEPS[:4])
    with pytest.raises(EmaError, match=name) as raised:
        watch(tmp_path / "run", tmp_path / "out", LAWS["half-life"], waiting=ONCE)
    assert raised.value.hint == f"move {moment} away to go on from an older moment, or from the beginning"
    moment.rename(tmp_path / "aside")
    assert watch(tmp_path / "run", tmp_path / "out", LAWS["half-life"], waiting=ONCE, force=True).folded == 4


@pytest.mark.parametrize("value", ['"1/0"', "1e999"])
def test_a_clock_that_is_no_number_is_damage_too(value: str, tmp_path: Path):
    """In the record of a moment, which Python's JSON may take for infinity, and a fraction cannot hold."""
    write_torch_run(tmp_path / "run", STEPS[:1])
    watch(tmp_path / "run", tmp_path / "out", LAWS["half-life"], waiting=ONCE)
    record = tmp_path / "out.watch" / "100ba" / "watch.json"
    (tmp_path / "damaged.json").write_text(record.read_text().replace('["100"', f"[{value}", 1))
    with pytest.raises(CheckpointError, match="is no record of a watch"):
        Journal.read(tmp_path / "damaged.json")


def test_other_laws_over_the_same_state_are_refused(tmp_path: Path):
    """What is kept is of the laws that were watched."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "averages", LAWS["half-life"], waiting=ONCE)
    with pytest.raises(OutputError, match="of another watch") as raised:
        watch(tmp_path / "run", tmp_path / "averages", LAWS["two"], waiting=ONCE)
    assert "stored" in str(raised.value.hint)


def test_an_output_that_is_there_is_not_replaced_unasked(tmp_path: Path):
    """Before the first checkpoint; afterwards it is the watch's own."""
    write_torch_run(tmp_path / "run", STEPS)
    average(make_plan(open_run(tmp_path / "run"), Recipe(half_life="50ba")), tmp_path / "out.safetensors")
    with pytest.raises(OutputError, match="exists already"):
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    assert not (tmp_path / "out.safetensors.watch").exists()
    watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE, force=True)


def test_a_gap_is_told_and_the_half_life_kept_true(tmp_path: Path):
    """What was deleted before it was read is missing, as it is missing for `average`."""
    write_torch_run(tmp_path / "run", STEPS)
    (tmp_path / "now").mkdir()
    told: list[str] = []
    for step in STEPS:
        if step not in (600, 700):
            shutil.copy(tmp_path / "run" / f"step-{step}.pt", tmp_path / "now")
            watched = watch(
                tmp_path / "now",
                tmp_path / "averages.safetensors",
                LAWS["half-life"],
                waiting=ONCE,
                listener=Listener(told=told.append),
            )
    assert len(told) == 1
    assert "between 500ba and 800ba: about 2 missing" in told[0]
    assert watched.gaps == tuple(told)
    average(make_plan(open_run(tmp_path / "now"), LAWS["half-life"][0]), tmp_path / "alone.safetensors")
    assert_near(tmp_path / "averages.safetensors", tmp_path / "alone.safetensors")


def resumed(tmp_path: Path, step: int, seed: int, **options: object) -> tuple[Entered, ...]:
    """Save one more checkpoint, with the tensors of a seed, and watch."""
    torch.save({"model": make_tensors(seed), "step": step}, tmp_path / "run" / f"again-step-{step}.pt")
    return watch(
        tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE, store_every="300ba", **options
    ).entered  # type: ignore[arg-type]


def test_the_same_clock_with_other_contents_is_an_error(tmp_path: Path):
    """That says where to go back to."""
    write_torch_run(tmp_path / "run", STEPS)
    assert len(resumed(tmp_path, 1100, 1)) == 11
    shutil.copy(tmp_path / "run" / "step-800.pt", tmp_path / "run" / "copy-step-800.pt")
    assert len(resumed(tmp_path, 1200, 1)) == 1  # an equal copy is none
    with pytest.raises(RunError, match=r"is at 800ba, where step-800.pt was folded, and has other") as raised:
        resumed(tmp_path, 800, 5)
    assert "restart_from='600ba'" in str(raised.value.hint)


def test_a_clock_that_goes_back_is_an_error_and_restart_from_goes_on(tmp_path: Path):
    """Then the averages are those of the branch that goes on; what was given up is kept aside."""
    write_torch_run(tmp_path / "run", STEPS)
    resumed(tmp_path, 1100, 1)
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="is at 750ba, but the averages are at 1100ba") as raised:
        resumed(tmp_path, 750, 7)
    assert "restart_from='600ba'" in str(raised.value.hint)
    assert "exclude='again-step-750.pt'" in str(raised.value.hint)
    with pytest.raises(OutputError, match="no moment is kept at 500ba; kept: 300ba, 600ba, 900ba, 1100ba") as not_kept:
        resumed(tmp_path, 750, 7, restart_from="500ba")
    assert str(not_kept.value.hint).startswith("the last before it: restart_from='300ba'; ")
    assert [str(entered.clock) for entered in resumed(tmp_path, 750, 7, restart_from="600ba")] == ["750ba"]
    assert sorted(path.name for path in (tmp_path / "out.safetensors.watch").iterdir()) == [
        "1100ba.given-up", "300ba", "600ba", "750ba", "900ba.given-up", "first.safetensors",
    ]  # fmt: skip
    write_torch_run(tmp_path / "other", range(100, 700, 100))
    torch.save({"model": make_tensors(7), "step": 750}, tmp_path / "other" / "step-750.pt")
    average(make_plan(open_run(tmp_path / "other"), LAWS["half-life"][0]), tmp_path / "alone.safetensors")
    assert_near(tmp_path / "out.safetensors", tmp_path / "alone.safetensors")


def test_a_nan_is_an_error_and_leaves_the_averages_as_they_were(tmp_path: Path):
    """It names checkpoint and tensor; what was folded before is published."""
    saved = write_torch_run(tmp_path / "run", STEPS)
    broken: Mapping[str, torch.Tensor] = {**saved[-1], "layer.bias": torch.full((4,), torch.nan)}
    torch.save({"model": broken, "step": 900}, tmp_path / "run" / "step-900.pt")
    with pytest.raises(NonFiniteError, match=r"step-900.pt.*layer\.bias") as raised:
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    assert raised.value.hint == "leave it out with exclude='step-900.pt'"  # it lets none pass
    manifest = read_manifest(manifest_path(tmp_path / "out.safetensors", is_folder=False))
    assert manifest["inputs"][-1]["clock"] == "800ba"


def test_an_infinity_that_ends_is_an_error_of_the_checkpoint_that_lacks_it(tmp_path: Path):
    """Not of the average that is kept, which nobody can leave out."""
    (tmp_path / "run").mkdir()
    for step, value in ((100, torch.inf), (200, torch.inf), (300, 1.0)):
        torch.save({"model": {"mask": torch.tensor([0.0, value])}, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    with pytest.raises(NonFiniteError, match=r"step-300\.pt: 'mask' is not finite at element 1 of the averages so far"):
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    manifest = read_manifest(manifest_path(tmp_path / "out.safetensors", is_folder=False))
    assert manifest["inputs"][-1]["clock"] == "200ba"


def test_a_checkpoint_of_another_model_is_an_error(tmp_path: Path):
    """Even when all those before are gone."""
    write_torch_run(tmp_path / "run", [100])
    watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    (tmp_path / "run" / "step-100.pt").unlink()
    torch.save({"model": {"layer.weight": torch.ones(4, 5)}, "step": 200}, tmp_path / "run" / "step-200.pt")
    with pytest.raises(RunError, match="layer"):
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(kind, marks=pytest.mark.full) for kind in ("walk", "rest in bfloat16")), "rest"],
)
def test_a_hundred_checkpoints_of_half_life_err_no_more_than_one(kind: str, tmp_path: Path):
    """Of weights near 1 that wander, and of weights that have come to rest, of which float32 alone would lose all.

    What is rounded off is kept, so that only the last rounding is left.
    """
    random = torch.Generator().manual_seed(3)
    value, saved, shares = torch.ones(2000), [], []
    (tmp_path / "run").mkdir()
    recipe = Recipe(half_life="100ba", update_interval="every")
    for step in range(1, 151):
        if kind == "walk" or step < 30:
            value = value + 0.01 * torch.randn(2000, generator=random)
        saved.append(value.bfloat16() if "bfloat16" in kind else value)
        save_file({"w": saved[-1]}, tmp_path / "run" / f"step-{step}.safetensors")
    watch(tmp_path / "run", tmp_path / "out.safetensors", recipe, waiting=ONCE, dtype="float32")
    shares = [2.0 ** -(1 / 100)] * 150
    exact = saved[0].double()
    for tensor, share in zip(saved[1:], shares, strict=False):
        exact = share * exact + (1 - share) * tensor.double()
    written = load_file(tmp_path / "out.safetensors")["w"].double()
    assert (written - exact).abs().max() <= 0.7 * 2.0**-24 * exact.abs().max().ceil()


def test_averages_in_the_folder_of_the_run_are_none_of_its_checkpoints(tmp_path: Path):
    """Neither what is published there nor what is kept."""
    for step in STEPS:
        write_torch_run(tmp_path / "run", [step])
        watched = watch(tmp_path / "run", tmp_path / "run" / "averages", LAWS["two"], waiting=ONCE, store_every="300ba")
        assert [entered.name for entered in watched.entered] == [f"step-{step}.pt"]
    assert [checkpoint.name for checkpoint in open_run(tmp_path / "run").checkpoints] == [
        f"step-{step}.pt" for step in STEPS
    ]


def test_a_half_life_of_the_training_so_far_is_watched_too(tmp_path: Path):
    """Its share follows from the clocks, as that of the power profile does."""
    write_torch_run(tmp_path / "run", STEPS)
    recipe = Recipe(half_life="20%ba")
    watch(tmp_path / "run", tmp_path / "watched.safetensors", recipe, waiting=ONCE)
    average(make_plan(open_run(tmp_path / "run"), recipe), tmp_path / "averaged.safetensors")
    assert_near(tmp_path / "watched.safetensors", tmp_path / "averaged.safetensors")


def test_an_input_is_never_replaced(tmp_path: Path):
    """Neither a checkpoint of the folder nor the one file that is watched, whatever is forced."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    newest = tmp_path / "run" / "step-300.pt"
    before = contents(tmp_path / "run")
    for path in (tmp_path / "run", newest):
        with pytest.raises(OutputError, match=r"holds an input, step-300\.pt"):
            watch(path, newest, LAWS["half-life"], waiting=ONCE, force=True)
    assert contents(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_somebody_else_put_there_is_not_replaced_unasked(tmp_path: Path):
    """Before there was anything to publish, and in the place of what was published."""
    (tmp_path / "run").mkdir()
    with pytest.raises(EmaError, match="no checkpoint is there yet") as raised:
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    assert "once" in str(raised.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    write_torch_run(tmp_path / "run", STEPS[:3])
    watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    for path in (tmp_path / "out.safetensors.manifest.json", tmp_path / "out.safetensors.sha256"):
        path.unlink()
    (tmp_path / "out.safetensors").write_bytes(b"somebody's")
    write_torch_run(tmp_path / "run", STEPS[:4])
    with pytest.raises(OutputError, match="exists already"):
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    assert (tmp_path / "out.safetensors").read_bytes() == b"somebody's"
    assert (
        watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE, force=True).folded == 4
    )


def test_an_error_before_it_begins_writes_nothing(tmp_path: Path):
    """A moment that is not kept: what was published is not written anew."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "out.safetensors", LAWS["half-life"], waiting=ONCE)
    told: list[str] = []
    listener = Listener(published=lambda clock, seconds, job: told.append(str(clock)))
    with pytest.raises(OutputError, match="no moment is kept"):
        watch(
            tmp_path / "run",
            tmp_path / "out.safetensors",
            LAWS["half-life"],
            waiting=ONCE,
            restart_from="550ba",
            listener=listener,
        )
    assert told == []


def test_a_clock_that_is_not_recorded_is_an_error_that_says_which_are(tmp_path: Path):
    """And how to count in them."""
    write_torch_run(tmp_path / "run", STEPS)
    with pytest.raises(RunError, match=r"records no clock in tokens.*known: batches") as raised:
        watch(tmp_path / "run", tmp_path / "out", Recipe(half_life="100tok"), waiting=ONCE)
    assert "count in batches" in str(raised.value.hint)


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_a_manifest_of_another_file_is_not_what_was_published(name: str, tmp_path: Path):
    """Of one file the manifest comes first: where a watch was ended before the file came, it is written anew."""
    write_torch_run(tmp_path / "run", STEPS[:3])
    watch(tmp_path / "run", tmp_path / name, LAWS["half-life"], waiting=ONCE)
    older = (tmp_path / name).read_bytes()
    write_torch_run(tmp_path / "run", STEPS[:4])
    watch(tmp_path / "run", tmp_path / name, LAWS["half-life"], waiting=ONCE)
    newer = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(older)
    watch(tmp_path / "run", tmp_path / name, LAWS["half-life"], waiting=ONCE)
    assert older != newer
    assert (tmp_path / name).read_bytes() == newer


@pytest.mark.parametrize("recipe", [Recipe(half_life="100ba"), Recipe(profile="uniform")])
def test_a_run_without_clocks_is_an_error_that_a_watch_can_mend(recipe: Recipe, tmp_path: Path):
    """It counts nothing but clocks: a spacing, as average takes it, would be of no use."""
    (tmp_path / "run").mkdir()
    for name in "ab":
        save_file({"weight": torch.ones(2)}, tmp_path / "run" / f"model-{name}.safetensors")
    with pytest.raises(RunError, match="records no clock: nobody knows what is new") as raised:
        watch(tmp_path / "run", tmp_path / "out", recipe, waiting=ONCE)
    assert raised.value.hint == "say where clocks are: name_clock='ba', or clock_key='step=ba'"

"""--name-clock, --ignore-clocks and --spacing: the user's word on clocks, and that it wins over what is recorded."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import RunError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Unit
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import Run, open_run
from tests.conftest import Cli

BATCH, EPOCH = Unit.BATCH, Unit.EPOCH


def write(folder: Path, *names: str, saved: dict[str, dict[str, Any]] | None = None) -> Path:
    """Save one model of a single number, 0, 1, 2, ..., under each name, with what else the file is to hold."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tensors = {"w": torch.full((2,), float(value))}
        if name.endswith(".safetensors"):
            save_file(tensors, folder / name)
        else:
            torch.save({"model": tensors, **(saved or {}).get(name, {})}, folder / name)
    return folder


def clocks(run: Run, unit: Unit) -> dict[str, Fraction | None]:
    return {checkpoint.name: checkpoint.clock(unit) for checkpoint in run.checkpoints}


def sources(run: Run, unit: Unit) -> set[str]:
    return {checkpoint.progress.clocks[unit].source for checkpoint in run.checkpoints}


VITS = ("G_0.pth", "G_1000.pth", "G_2000.pth")


def vits(folder: Path) -> Path:
    """Save what VITS does: `iteration` is the epoch, the steps are in the names."""
    epochs = zip(VITS, (1, 1, 2), strict=True)
    return write(folder, *VITS, saved={name: {"iteration": epoch, "learning_rate": 1e-4} for name, epoch in epochs})


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        (["model_10.pt", "model_20.pt"], "ba", [10, 20]),
        (["ckpt_001000.pt", "ckpt_002000.pt"], "steps", [1000, 2000]),
        (["step_500.pt", "step_1,000.pt", "step_1,500.pt"], "ba", [500, 1000, 1500]),
        (["step_1e3.pt", "step_2e3.pt"], "ba", [1000, 2000]),
        (["step10k.pt", "step100k.pt"], "ba", [10_000, 100_000]),
        (["resnet_batch_64_1.safetensors", "resnet_batch_64_2.safetensors"], "ba", [1, 2]),
        (["20/model.pt", "100/model.pt"], "ba", [20, 100]),
        (["run7-1-100.pt", "run7-1-200.pt", "run7-2-300.pt"], "run7-{ep}-{ba}.pt", [100, 200, 300]),
        (["a-2026-11-29_10.pt", "b-2026-11-30_20.pt"], "?-*_{ba}.pt", [10, 20]),
        (["x/7-10/model.pt", "x/7-20/model.pt"], "7-{ba}", [10, 20]),
        (["x/7-10/model.pt", "x/7-20/model.pt"], "x/7-{ba}/*", [10, 20]),
        (["epoch_3.pt", "epoch_4.pt"], "ba", [3, 4]),
    ],
)  # fmt: skip
def test_the_numbers_in_names_are_batches(names: list[str], text: str, expected: list[int], tmp_path: Path) -> None:
    """A unit for the number that grows, or a pattern that says where it is."""
    run = open_run(write(tmp_path, *names), name_clock=text)
    assert list(clocks(run, BATCH).values()) == expected
    assert sources(run, BATCH) == {"name clock"}


def test_a_pattern_gives_several_units_and_the_words_give_none_of_them(tmp_path: Path) -> None:
    """Both fields count; a number that is given to batches is not an epoch, too, whatever stands before it."""
    run = open_run(write(tmp_path / "a", "r-1-10.pt", "r-2-20.pt"), name_clock="r-{ep}-{ba}.pt")
    assert (list(clocks(run, EPOCH).values()), list(clocks(run, BATCH).values())) == ([1, 2], [10, 20])
    assert run.units == (BATCH, EPOCH)
    assert open_run(write(tmp_path / "b", "epoch_3.pt", "epoch_4.pt"), name_clock="ba").units == (BATCH,)


def test_epochs_in_names_that_begin_at_0_are_shifted(tmp_path: Path) -> None:
    """As those that words say: the lowest is 0, so each is one more completed epoch."""
    run = open_run(write(tmp_path, "model_0.pth", "model_1.pth"), name_clock="ep")
    assert list(clocks(run, EPOCH).values()) == [1, 2]
    assert "epochs are counted from 0" in run.notes[0]


def test_a_recorded_clock_gives_way_in_its_unit_alone(tmp_path: Path) -> None:
    """The names' batches take the place of the recorded ones in every checkpoint, which is said; epochs stay."""
    saved = {f"m_{n}.pt": {"step": n + 7, "epoch": n // 10} for n in (10, 20)}
    run = open_run(write(tmp_path, *saved, saved=saved), name_clock="ba")
    assert (list(clocks(run, BATCH).values()), sources(run, BATCH)) == ([10, 20], {"name clock over file"})
    assert (list(clocks(run, EPOCH).values()), sources(run, EPOCH)) == ([1, 2], {"file"})
    assert run.warnings == ("--name-clock ba overrules the clocks in batches that 2 checkpoints record",)


def test_a_checkpoint_without_a_number_is_refused_unless_it_is_left_out(cli: Cli, tmp_path: Path) -> None:
    """Even one that records a clock: one line cannot have clocks of two kinds."""
    write(tmp_path / "run", "m_10.pt", "m_20.pt", "final.pt", "last.pt", saved={"final.pt": {"step": 30}})
    refused = cli("average", "run", "--half-life", "10ba", "--name-clock", "ba", "-o", "out.pt")
    assert refused.code == 4
    assert "last.pt: has no number in its name that --name-clock ba takes" in refused.err
    assert "leave it out with --exclude last.pt --exclude final.pt" in refused.err
    leave = ("--exclude", "final.pt", "--exclude", "last.pt")
    done = cli("average", "run", "--half-life", "10ba", "--name-clock", "ba", *leave, "-o", "out.pt")
    assert done.code == 0, done


def test_a_pattern_that_fits_no_name_is_not_answered_with_leaving_all_out(cli: Cli, tmp_path: Path) -> None:
    """The suffix is easily forgotten; the hint has a name to copy from."""
    write(tmp_path / "run", "m_10.pt", "m_20.pt")
    refused = cli("average", "run", "--half-life", "10ba", "--name-clock", "m_{ba}", "-o", "out.pt")
    assert (refused.code, "the pattern must fit a whole name, as m_10.pt is" in refused.err) == (4, True)
    done = cli("average", "run", "--half-life", "10ba", "--name-clock", "m_{ba}*", "-o", "out.pt")
    assert done.code == 0, done


def test_several_numbers_that_grow_need_a_pattern(cli: Cli, tmp_path: Path) -> None:
    """The error offers one, which works when it is copied."""
    write(tmp_path / "run", "run7-1-100.pt", "run7-1-200.pt", "run7-2-300.pt")
    for options in ((), ("--name-clock", "ba")):
        refused = cli("average", "run", "--half-life", "100ba", *options, "-o", "out.safetensors")
        assert refused.code == 4
        assert "--name-clock 'run7-{ep}-{ba}.pt'" in refused.err
    pattern = ("--name-clock", "run7-{ep}-{ba}.pt")
    assert cli("average", "run", "--half-life", "100ba", *pattern, "-o", "out.safetensors").code == 0
    # 0, 1 and 2 at 100, 200 and 300ba with a half-life of 100ba.
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [0 * 0.25 + 1 * 0.25 + 2 * 0.5] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bla", r"'bla' is no unit, and no pattern of names"),
        ("m_{step}_{ba}.pt", r"has two numbers of batches"),
        ("m_{x}.pt", r"has '\{x\}', which is no unit"),
        ("m_*.pt", r"has no unit in it"),
    ],
)
def test_a_value_that_is_neither_unit_nor_pattern(text: str, message: str, tmp_path: Path) -> None:
    """A usage error that says what is wrong."""
    with pytest.raises(UsageError, match=message) as raised:
        open_run(write(tmp_path, "m_1.pt", "m_2.pt"), name_clock=text)
    assert raised.value.option == "name_clock"


def test_names_without_a_number_that_grows_have_no_clock(tmp_path: Path) -> None:
    """There is nothing to count."""
    with pytest.raises(RunError, match="no number in the names of the checkpoints grows"):
        open_run(write(tmp_path, "alpha.pt", "beta.pt"), name_clock="ba")


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["resnet_batch_64_1.pt", "resnet_batch_64_2.pt", "resnet_batch_64_4.pt"],
        ["llama-tok32000-100.pt", "llama-tok32000-200.pt", "llama-tok32000-300.pt"],
        ["x9ba12qq-1.pt", "x9ba12qq-2.pt", "x9ba12qq-3.pt"],
        ["model_10.pt", "model_20.pt", "model_30.pt"],
        ["ckpt_001000.pt", "ckpt_002000.pt", "ckpt_003000.pt"],
        ["step_1,000.pt", "step_2,000.pt", "step_3,000.pt"],
        ["step_1e3.pt", "step_2e3.pt", "step_3e3.pt"],
        ["2026-11-29-10.pt", "2026-11-29-20.pt", "2026-11-30-30.pt"],
    ],
)
def test_the_error_offers_the_option_and_it_works(names: list[str], cli: Cli, tmp_path: Path) -> None:
    """No number of the configuration is taken for a clock; the hint can be pasted."""
    write(tmp_path / "run", *names)
    refused = cli("average", "run", "--half-life", "10ba", "-o", "out.safetensors")
    assert refused.code == 4
    assert "count batches, say so: --name-clock ba" in refused.err
    assert cli("average", "run", "--half-life", "10ba", "--name-clock", "ba", "-o", "out.safetensors").code == 0


def test_epochs_of_a_name_are_offered_as_epochs(cli: Cli, tmp_path: Path) -> None:
    """The 2 of `2nd` is no epoch, and the number that grows may be."""
    write(tmp_path / "run", *(f"epoch_2nd_{n:05}.pth" for n in (10, 20, 30)))
    refused = cli("average", "run", "--half-life", "10ep", "-o", "out.safetensors")
    assert (refused.code, "count epochs, say so: --name-clock ep" in refused.err) == (4, True)
    assert cli("average", "run", "--half-life", "10ep", "--name-clock", "ep", "-o", "out.safetensors").code == 0


@pytest.mark.parametrize(
    ("names", "unit", "expected"),
    [
        (["resnet_batch_64_epoch_1.pt", "resnet_batch_64_epoch_2.pt"], EPOCH, [1, 2]),
        (["step_100_batch_64.pt", "step_200_batch_64.pt"], BATCH, [100, 200]),
        (["tok32000_step_100.pt", "tok32000_step_200.pt"], BATCH, [100, 200]),
    ],
)
def test_a_setting_in_the_name_does_not_hide_the_clock(
    names: list[str], unit: Unit, expected: list[int], tmp_path: Path
) -> None:
    """The number that stands still is no clock, the one that grows and has its word is."""
    run = open_run(write(tmp_path, *names))
    assert list(clocks(run, unit).values()) == expected
    assert run.units == (unit,)


def test_ignore_clocks_alone_leaves_none(cli: Cli, tmp_path: Path) -> None:
    """The error says why there is no clock, and --spacing helps."""
    saved: dict[str, dict[str, Any]] = {"alpha.pt": {"step": 1}, "beta.pt": {"step": 2}}
    write(tmp_path / "run", *saved, saved=saved)
    command = ("average", "run", "--half-life", "10ba", "--ignore-clocks", "-o", "out.safetensors")
    refused = cli(*command)
    assert refused.code == 4
    assert "has no clock in batches that is used" in refused.err
    assert "--spacing 5ba" in refused.err
    assert cli(*command, "--spacing", "5ba").code == 0


def test_an_epoch_in_the_name_may_stand_still_while_batches_pass(tmp_path: Path) -> None:
    """It is an epoch all the same."""
    run = open_run(write(tmp_path, "epoch=1-step=10.pt", "epoch=1-step=20.pt"))
    assert (list(clocks(run, EPOCH).values()), list(clocks(run, BATCH).values())) == ([1, 1], [10, 20])


def test_numbers_that_are_known_to_be_epochs_are_not_offered_as_batches(tmp_path: Path) -> None:
    """The files record them as epochs."""
    saved: dict[str, dict[str, Any]] = {f"m_{n}.pt": {"epoch": n} for n in (1, 2, 3)}
    run = open_run(write(tmp_path, *saved, saved=saved))
    with pytest.raises(RunError) as raised:
        make_plan(run, Recipe(half_life="5ba"))
    assert "name_clock" not in (raised.value.hint or "")
    assert "count in epochs: half_life='2ep'" in (raised.value.hint or "")


def test_clocks_that_are_recorded_twice_lead_to_the_numbers_in_the_names(cli: Cli, tmp_path: Path) -> None:
    """VITS: inspect and average say which option counts the steps, and with it the average is that of the steps."""
    vits(tmp_path / "run")
    advice = "if the numbers in the names (0, 1000, 2000) count batches, say so: --name-clock ba"
    shown = cli("inspect", "run", "--half-life", "1000ba")
    assert (shown.code, advice in " ".join(shown.out.split())) == (0, True)
    refused = cli("average", "run", "--half-life", "1000ba", "-o", "out.safetensors")
    assert (refused.code, advice in refused.err) == (4, True)
    done = cli("average", "run", "--half-life", "1000ba", "--name-clock", "ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "--name-clock ba overrules the clocks in batches that 3 checkpoints record" in done.err
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [1.5, 1.5]  # step 0 is not trained
    manifest = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())
    assert {row["clocks"]["ba"]["from"] for row in manifest["inputs"]} == {"name clock over file"}
    assert manifest["recipe"]["name_clock"] == "ba"
    verified = cli("verify", "out.safetensors", "--against", "run")
    assert verified.code == 0, verified
    assert verified.out.rstrip().endswith("its clocks are not those that the checkpoints record (--name-clock ba)")


def test_spacing_over_recorded_clocks_needs_ignore_clocks(cli: Cli, tmp_path: Path) -> None:
    """A habit cannot falsify good clocks: the two options together do, which is said."""
    vits(tmp_path / "run")
    spacing = ("average", "run", "--half-life", "1000ba", "--spacing", "1000ba")
    refused = cli(*spacing, "-o", "out.safetensors")
    assert (refused.code, "--spacing 1000ba --ignore-clocks" in refused.err) == (4, True)
    done = cli(*spacing, "--ignore-clocks", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "--ignore-clocks: not used are the clocks that 3 checkpoints record" in done.err
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [1.25, 1.25]
    assert cli("verify", "out.safetensors").out.rstrip().endswith("(--ignore-clocks)")
    run = open_run(tmp_path / "run", spacing="1000ba", ignore_clocks=True)
    assert (run.units, sources(run, BATCH)) == ((BATCH,), {"spacing over file"})


def test_spacing_warns_of_numbers_that_are_unevenly_spaced(tmp_path: Path) -> None:
    """10, 20 and 100 are not equally far apart; 10, 20 and 30 are."""
    uneven = open_run(write(tmp_path / "a", "m_10.pt", "m_20.pt", "m_100.pt"), spacing="10ba")
    assert uneven.warnings == (
        "the numbers in the names are not evenly spaced (10, 20, 100), and --spacing 10ba takes them as if they were; "
        "--name-clock ba counts them as they are",
    )
    assert open_run(write(tmp_path / "b", "m_10.pt", "m_20.pt", "m_30.pt"), spacing="10ba").warnings == ()
    assert open_run(write(tmp_path / "c", "alpha.pt", "beta.pt", "gamma.pt"), spacing="10ba").warnings == ()


def test_files_without_clocks_are_averaged_alike_in_the_order_of_their_names(cli: Cli, tmp_path: Path) -> None:
    """A uniform profile needs no clock, which is said; verify makes it anew. A half-life is refused with that way."""
    write(tmp_path / "run", "alpha.safetensors", "beta.safetensors")
    files = ("run/alpha.safetensors", "run/beta.safetensors")
    done = cli("average", *files, "--profile", "uniform", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "no common clock: all count alike, and beta.safetensors is taken for the newest, by its name" in done.err
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [0.5, 0.5]
    assert cli("verify", "out.safetensors", "--against", "run").code == 0
    refused = cli("average", *files, "--half-life", "10ba", "-o", "x.safetensors")
    assert "--spacing 5ba" in refused.err
    assert "--profile uniform" in refused.err
    for options in (("--last", "1"), ("--update-interval", "1ba")):
        assert cli("average", *files, "--profile", "uniform", *options, "-o", "x.safetensors").code == 4


def test_a_few_checkpoints_without_the_clock_of_the_others_can_be_left_out(cli: Cli, tmp_path: Path) -> None:
    """MONAI's last one has an iteration in its name, the others an epoch: the hint leaves it out."""
    write(tmp_path / "run", *(f"net_epoch={n}.pt" for n in (1, 2, 3)), "net_final_iteration=15.pt")
    command = ("average", "run", "--half-life", "1ep", "-o", "out.safetensors")
    refused = cli(*command)
    assert (refused.code, "leave out what has none: --exclude net_final_iteration=15.pt" in refused.err) == (4, True)
    assert cli(*command, "--exclude", "net_final_iteration=15.pt").code == 0
    assert "have no clock in one unit" in cli("inspect", "run", "--smoothing", "0.5").err


@pytest.mark.parametrize(
    ("names", "half_life", "spacing"),
    [
        (("m_5.pt", "m_10.pt", "m_15.pt"), "10ba", "--spacing 5ba"),
        (("epoch_2nd_00010.pth", "epoch_2nd_00020.pth"), "30ep", "--spacing 10ep"),
        (("part_1.pt", "part_2.pt", "part_3.pt"), "50ba", "--spacing 25ba"),  # numbers that count the saves
        (("m_10.pt", "m_25.pt", "m_70.pt"), "10ba", None),
    ],
)
def test_the_spacing_of_the_hint_is_that_of_the_names(
    names: tuple[str, ...], half_life: str, spacing: str | None, cli: Cli, tmp_path: Path
) -> None:
    """What the hint offers raises no warning of another spacing when it is followed."""
    write(tmp_path / "run", *names)
    command = ("average", "run", "--half-life", half_life, "-o", "out.safetensors")
    refused = cli(*command)
    assert refused.code == 4
    if spacing is None:
        assert "--spacing" not in refused.err
    else:
        assert spacing in refused.err
        done = cli(*command, *spacing.split())
        assert (done.code, "evenly" in done.err) == (0, False)


@pytest.mark.parametrize(
    ("names", "saved"),
    [
        (["epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt", "last.ckpt"], [{"global_step": n} for n in (10, 20, 20)]),
        (["ckpt_10.pt", "ckpt_20.pt", "ckpt.pt"], [{"iter_num": n} for n in (10, 20, 20)]),
        (["m_epoch_1.pt", "m_epoch_2.pt", "best.pt", "last.pt"], [{"epoch": n} for n in (1, 2, 1, 2)]),
    ],
)
def test_a_copy_of_a_checkpoint_is_no_reason_to_doubt_the_clocks(
    names: list[str], saved: list[dict[str, Any]], cli: Cli, tmp_path: Path
) -> None:
    """A run that keeps its last and best checkpoints beside the numbered ones averages without a word."""
    run = write(tmp_path / "run", *names, saved=dict(zip(names, saved, strict=True)))
    numbers = {}
    for name, state in zip(names, saved, strict=True):
        value = next(iter(state.values()))
        numbers[name] = value
        torch.save({"model": {"w": torch.full((2,), float(value))}, **state}, run / name)
    unit = "ep" if "epoch" in saved[0] else "ba"
    first, second = (float(numbers[name]) for name in names[:2])
    done = cli("average", "run", "--half-life", f"{int(second - first)}{unit}", "-o", "out.safetensors")
    assert (done.code, "warning" in done.err) == (0, False), done.err
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [(first + second) / 2] * 2


def test_copies_without_a_clock_are_compared_and_not_warned_of(cli: Cli, tmp_path: Path) -> None:
    """What equals a checkpoint of the run is silent; a best one that equals none is said, for its name decided."""
    write(tmp_path / "run", "step-10.pt", "step-20.pt")
    (tmp_path / "run" / "last.pt").write_bytes((tmp_path / "run" / "step-20.pt").read_bytes())
    command = ("average", "run", "--half-life", "10ba", "-o", "out.safetensors", "--force")
    done = cli(*command)
    assert (done.code, "warning" in done.err) == (0, False), done.err
    torch.save({"model": {"w": torch.full((2,), 9.0)}}, tmp_path / "run" / "best.pt")
    said = cli(*command)
    assert (said.code, "best.pt is passed over: records no clock; a best one may be" in said.err) == (0, True)


def test_names_without_numbers_that_may_not_be_the_latest_are_said(tmp_path: Path) -> None:
    """One final model is what it seems; a best one, or several, as a shell's *.pt names them, may be copies."""
    run = write(tmp_path, "m_1.pt", "m_2.pt", "best.pt", "last.pt")
    notes = {}
    for names in (("last.pt",), ("best.pt",), ("best.pt", "last.pt")):
        paths = [run / name for name in ("m_1.pt", "m_2.pt", *names)]
        notes[names] = open_run(paths, spacing="10ba").warnings
    assert notes["last.pt",] == ()
    (one,), (several,) = notes["best.pt",], notes["best.pt", "last.pt"]
    assert one.startswith("best.pt has no number in its name, and --spacing takes it for the latest; leave it out")
    assert several.startswith("best.pt and 1 more have no number in their names, and --spacing takes them for the")


def test_names_of_another_kind_are_left_out_together(cli: Cli, tmp_path: Path) -> None:
    """G_1000.pth has a number, and is not read as D_1000.pth is: one pattern leaves all such out, and works."""
    names = [f"{network}_{step}.pth" for network in "DG" for step in (1000, 2000)]
    write(tmp_path / "run", *names)
    command = ("average", "run", "--half-life", "1000ba", "--name-clock", "ba", "-o", "out.safetensors")
    refused = cli(*command)
    assert refused.code == 4
    assert "G_1000.pth: has another kind of name than D_1000.pth" in refused.err
    assert "--exclude 'G_*.pth'" in refused.err
    assert cli(*command, "--exclude", "G_*.pth").code == 0
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [0.5, 0.5]


def test_a_run_without_clocks_is_shown_as_such(cli: Cli, tmp_path: Path) -> None:
    """The word that stands for a missing value in a table is none for a sentence."""
    write(tmp_path / "run", "m_1.pt", "m_2.pt")
    assert "Every checkpoint: no clock, torch zip" in cli("inspect", "run").out


def test_steps_that_begin_again_in_each_folder_are_counted_anew(cli: Cli, tmp_path: Path) -> None:
    """The steps are those of the epoch, which the folder names: these are no parts of one model."""
    write(tmp_path / "run", *(f"epoch_{epoch}/step_{step}.pt" for epoch in (1, 2) for step in (10, 20)))
    command = ("average", "run", "--half-life", "10ba", "-o", "out.safetensors")
    refused = cli(*command)
    assert (refused.code, "parts of one model" in refused.err) == (4, False)
    assert "they may begin again in epoch_2; where no checkpoint is missing, count anew" in refused.err
    assert "--spacing 10ba --ignore-clocks" in refused.err
    assert cli(*command, "--spacing", "10ba", "--ignore-clocks").code == 0
    expected = 0 / 8 + 1 / 8 + 2 / 4 + 3 / 2
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [expected] * 2

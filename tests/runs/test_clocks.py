"""Where a checkpoint's clock comes from, and what only the whole run can tell of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import EmaError, RunError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import Run, open_run
from tests.conftest import COMPOSER, Cli, make_tensors, write_hf_run, write_torch_run

BATCH, EPOCH, SAMPLE, TOKEN = Unit.BATCH, Unit.EPOCH, Unit.SAMPLE, Unit.TOKEN


def save(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def clocks(run: Run, unit: Unit) -> list[Fraction | None]:
    return [each.clock(unit) for each in run.checkpoints]


def sources(run: Run, unit: Unit) -> set[str]:
    return {each.progress.clocks[unit].source for each in run.checkpoints}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step-100.safetensors", {BATCH: 100}),
        ("step_100.safetensors", {BATCH: 100}),
        ("step100.safetensors", {BATCH: 100}),
        ("steps=100.safetensors", {BATCH: 100}),
        ("model-Step-0100.safetensors", {BATCH: 100}),
        ("iter_0001000.safetensors", {BATCH: 1000}),
        ("iteration-7.safetensors", {BATCH: 7}),
        ("batch-7.safetensors", {BATCH: 7}),
        ("step-100-of-1000.safetensors", {BATCH: 100}),
        ("ep1-ba50-rank0.safetensors", {EPOCH: 1, BATCH: 50}),
        ("epoch_4-step_400.safetensors", {EPOCH: 4, BATCH: 400}),
        ("tokens-5000.safetensors", {TOKEN: 5000}),
        ("samples-77-rank3.safetensors", {SAMPLE: 77}),
        ("step-100-tokens4B.safetensors", {BATCH: 100}),  # 4 billion, not 4
        ("step-3000-tokens1.5b.safetensors", {BATCH: 3000}),
        ("step-100/model.safetensors", {BATCH: 100}),
        ("checkpoint-100/model.safetensors", {BATCH: 100}),
        ("step-5/epoch-2.safetensors", {EPOCH: 2}),
        ("footstep-100.safetensors", {}),
        ("checkpoint_3.safetensors", {}),
        ("llama-7b.safetensors", {}),
        ("step4.5k.safetensors", {}),
    ],
)
def test_a_name_is_the_last_resort(tmp_path: Path, name: str, expected: dict[Unit, int]):
    """What trainers call their files carries clocks, and abbreviated counts are not taken for small ones."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    save_file(make_tensors(1), tmp_path / name)
    run = open_run([tmp_path])
    (only,) = run.checkpoints
    assert {unit: clock.value for unit, clock in only.progress.clocks.items()} == expected
    assert {clock.source for clock in only.progress.clocks.values()} <= {"name"}


@pytest.mark.parametrize("key", ["step", "global_step", "iteration", "iter_num", "num_updates", "global_steps"])
def test_plain_dicts_count_batches_under_many_names(tmp_path: Path, key: str):
    """Whatever the training loop calls its optimizer steps."""
    save(tmp_path / "a.pt", {"model": make_tensors(1), key: 300})
    run = open_run([tmp_path / "a.pt"])
    assert (clocks(run, BATCH), sources(run, BATCH)) == ([300], {"file"})


def test_the_file_comes_before_the_name_unit_by_unit(tmp_path: Path):
    """The batch inside wins; the epoch, which only the name has, is taken from there."""
    save(tmp_path / "epoch-2-step-999.pt", {"model": make_tensors(1), "step": 300})
    run = open_run([tmp_path])
    assert (clocks(run, BATCH), clocks(run, EPOCH)) == ([300], [2])
    assert (sources(run, BATCH), sources(run, EPOCH)) == ({"file"}, {"name"})


def lightning(epoch: int, step: int, *, last: bool | None) -> dict[str, Any]:
    content: dict[str, Any] = {"pytorch-lightning_version": "2.6.6", "epoch": epoch, "global_step": step}
    if last is not None:
        content["loops"] = {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": last}}}
    return {**content, "state_dict": make_tensors(step)}


def test_lightning_counts_epochs_from_0(tmp_path: Path):
    """epoch=1 is two completed epochs where its last batch is done, and one in the middle."""
    save(tmp_path / "epoch=0-step=40.ckpt", lightning(0, 40, last=True))
    save(tmp_path / "epoch=1-step=60.ckpt", lightning(1, 60, last=False))
    save(tmp_path / "epoch=1-step=80.ckpt", lightning(1, 80, last=True))
    save(tmp_path / "epoch=2-step=120.ckpt", lightning(2, 120, last=None))
    run = open_run([tmp_path])
    assert clocks(run, BATCH) == [40, 60, 80, 120]
    assert clocks(run, EPOCH) == [1, 1, 2, 3]
    assert run.notes == ()


def test_hugging_face_epochs_are_exact_decimals(tmp_path: Path):
    """0.3 in trainer_state.json is 3/10, not the nearest binary number; tokens count where they were counted."""
    write_hf_run(tmp_path, [30, 60, 130], epoch_length=100)
    run = open_run([tmp_path])
    assert clocks(run, EPOCH) == [Fraction(3, 10), Fraction(6, 10), Fraction(13, 10)]
    assert clocks(run, TOKEN) == [None, None, None]


@pytest.mark.parametrize("where", ["file", "name"])
def test_epochs_counted_from_0_are_shifted_with_a_note(tmp_path: Path, where: str):
    """The lowest epoch of a run is 0: each is one more completed epoch, and the note says by which file."""
    for epoch in (0, 1, 2):
        content = {"model": make_tensors(epoch), **({"epoch": epoch} if where == "file" else {})}
        save(tmp_path / (f"net{'-' * epoch}a.pt" if where == "file" else f"epoch_{epoch}.pt"), content)
    run = open_run([tmp_path])
    assert clocks(run, EPOCH) == [1, 2, 3]
    assert sources(run, EPOCH) == {where}
    first = run.checkpoints[0].name
    assert run.notes == (f"epochs are counted from 0 ({first}): each is taken as one more completed epoch",)


def test_epochs_counted_from_1_stay(tmp_path: Path):
    """Without an epoch 0 there is nothing to shift."""
    for epoch in (1, 2):
        save(tmp_path / f"{epoch}.pt", {"model": make_tensors(epoch), "epoch": epoch})
    run = open_run([tmp_path])
    assert (clocks(run, EPOCH), run.notes) == ([1, 2], ())


def test_epoch_0_of_the_untrained_model_is_no_reason_to_shift(tmp_path: Path):
    """Batch 0 in epoch 0 is the start of training: epochs are completed ones already, and it does not enter."""
    for epoch, step in ((0, 0), (1, 50), (2, 100)):
        save(tmp_path / f"{step}.pt", {"model": make_tensors(step), "epoch": epoch, "step": step})
    run = open_run([tmp_path])
    assert (clocks(run, EPOCH), run.notes) == ([0, 1, 2], ())
    plan = make_plan(run, Recipe(half_life=Time.parse("1ep")))
    assert [entry.checkpoint.name for entry in plan.entries] == ["50.pt", "100.pt"]


def test_composers_last_batch_completes_its_epoch():
    """ep0-ba12 of epochs of 12 is one completed epoch, as ep1-ba12 says; the batches before it are not."""
    run = open_run([COMPOSER / "every-batch"])
    assert clocks(run, BATCH) == list(range(1, 25))
    assert clocks(run, EPOCH) == [0] * 11 + [1] * 12 + [2]
    assert clocks(run, SAMPLE) == [4 * n for n in range(1, 25)]
    assert clocks(run, TOKEN) == [None] * 24  # its loader counted none
    assert [(each.name, each.reason) for each in run.passed_over] == [
        ("latest-rank0.pt", "the same file as ep1-ba24-rank0.pt")
    ]


def composer(epoch: int, batch: int, in_epoch: int) -> dict[str, Any]:
    counts = {"epoch": epoch, "batch": batch, "sample": 4 * batch, "token": 0, "batch_in_epoch": in_epoch}
    return {"state": {"model": make_tensors(batch), "timestamp": {"Timestamp": counts}}}


def test_composers_batch_and_epoch_saves_of_one_state_are_twins(tmp_path: Path):
    """ep0-ba20 and ep1-ba20 are the same weights, saved twice: one clock once the epoch is completed."""
    save(tmp_path / "ep0-ba10-rank0.pt", composer(0, 10, 10))
    save(tmp_path / "ep0-ba20-rank0.pt", composer(0, 20, 20))
    save(tmp_path / "ep1-ba20-rank0.pt", composer(1, 20, 0))
    run = open_run([tmp_path])
    assert clocks(run, EPOCH) == [0, 1, 1]
    assert [sorted(each.name for each in group) for group in run.twins()] == [
        ["ep0-ba20-rank0.pt", "ep1-ba20-rank0.pt"]
    ]


def test_composers_weights_alone_take_their_clocks_from_the_name(tmp_path: Path):
    """save_weights_only leaves no timestamp; epochs in Composer's names are completed ones, even from 0."""
    for epoch, batch in ((0, 10), (1, 20)):
        save(tmp_path / f"ep{epoch}-ba{batch}-rank0.pt", {"state": {"model": make_tensors(batch)}})
    run = open_run([tmp_path])
    assert (clocks(run, BATCH), clocks(run, EPOCH), run.notes) == ([10, 20], [0, 1], ())


def test_an_epoch_length_converts_batches_to_epochs_and_back(tmp_path: Path):
    """Exactly, each where the other is missing, and the source is said."""
    write_torch_run(tmp_path / "batches", [100, 250])
    run = open_run([tmp_path / "batches"], epoch_length=Time.parse("300ba"))
    assert (clocks(run, EPOCH), sources(run, EPOCH)) == ([Fraction(1, 3), Fraction(5, 6)], {"epoch length"})
    for epoch in (1, 2):
        save(tmp_path / "epochs" / f"{epoch}.pt", {"model": make_tensors(epoch), "epoch": epoch})
    run = open_run([tmp_path / "epochs"], epoch_length=Time.parse("1e3ba"))
    assert (clocks(run, BATCH), sources(run, BATCH)) == ([1000, 2000], {"epoch length"})
    write_hf_run(tmp_path / "both", [100], epoch_length=50)
    run = open_run([tmp_path / "both"], epoch_length=Time.parse("7ba"))
    assert (clocks(run, BATCH), clocks(run, EPOCH)) == ([100], [2])


def test_epochs_from_0_are_shifted_before_they_are_converted(tmp_path: Path):
    """Epoch 0 of 1000 batches ends at batch 1000."""
    for epoch in (0, 1):
        save(tmp_path / f"epoch_{epoch}.pt", {"model": make_tensors(epoch)})
    assert clocks(open_run([tmp_path], epoch_length=Time.parse("1000ba")), BATCH) == [1000, 2000]


@pytest.mark.parametrize("text", ["2ep", "0ba", "infba", "100tok"])
def test_an_epoch_length_is_a_number_of_batches(tmp_path: Path, text: str):
    """Anything else is a usage error."""
    write_torch_run(tmp_path, [100])
    with pytest.raises(UsageError, match=rf"^epoch_length=: '{text}' is not a number of batches$"):
        open_run([tmp_path], epoch_length=Time.parse(text))


def test_spacing_gives_clocks_in_natural_order(tmp_path: Path):
    """The k-th name, counted from 1, gets k times the spacing; part-9 comes before part-10."""
    for number in (10, 9, 100):
        save(tmp_path / f"part-{number}.pt", {"model": make_tensors(number)})
    run = open_run([tmp_path], spacing=Time.parse("2.5ep"))
    assert [each.name for each in run.checkpoints] == ["part-9.pt", "part-10.pt", "part-100.pt"]
    assert (clocks(run, EPOCH), sources(run, EPOCH)) == ([Fraction(5, 2), 5, Fraction(15, 2)], {"spacing"})


def test_spacing_leaves_out_copies(tmp_path: Path):
    """A copy named last or best is no further checkpoint: it would get a clock of its own."""
    for name in ("part-1.pt", "part-2.pt", "last.pt", "model_best.pt"):
        save(tmp_path / name, {"model": make_tensors(1)})
    run = open_run([tmp_path], spacing=Time.parse("100ba"))
    assert clocks(run, BATCH) == [100, 200]
    assert {each.name: each.reason for each in run.passed_over} == {
        "last.pt": "records no clock; an average compares it with the others",
        "model_best.pt": "records no clock; a best one may be of any moment",
    }


def test_spacing_where_only_some_record_a_clock_is_an_error(tmp_path: Path):
    """Some with and some without cannot be put on one line: exit 4, one of each is named."""
    write_torch_run(tmp_path, [100])
    save(tmp_path / "part-2.pt", {"model": make_tensors(2)})
    message = r"spacing='100ba': step-100\.pt has a clock in batches, part-2\.pt has none"
    with pytest.raises(RunError, match=message) as raised:
        open_run([tmp_path], spacing=Time.parse("100ba"))
    assert raised.value.exit_code == 4


def test_spacing_where_every_checkpoint_has_its_clock_is_an_error(tmp_path: Path):
    """Recorded clocks are better than any that are given."""
    write_torch_run(tmp_path, [100, 200])
    with pytest.raises(RunError, match="all checkpoints have a clock in batches") as raised:
        open_run([tmp_path], spacing=Time.parse("100ba"))
    assert raised.value.hint == ("leave out spacing=, or overrule the clocks: spacing='100ba' ignore_clocks=True")


@pytest.mark.parametrize("text", ["0ba", "infep"])
def test_a_spacing_is_a_distance(tmp_path: Path, text: str):
    """0 and infinity are usage errors."""
    save(tmp_path / "part-1.pt", {"model": make_tensors(1)})
    with pytest.raises(EmaError, match=rf"^spacing=: '{text}' is no distance between checkpoints$") as raised:
        open_run([tmp_path], spacing=Time.parse(text))
    assert raised.value.exit_code == 2


def test_averages_under_the_name_of_a_copy_do_not_stop_a_run(cli: Cli, tmp_path: Path) -> None:
    """YOLOv5 strips `best.pt` and `last.pt` when training ends: they hold its EMA, and are passed over with a word."""
    for epoch in (1, 2):
        raw = {"epoch": epoch, "model": {"w": torch.full((2,), float(epoch))}, "optimizer": {}}
        torch.save({**raw, "ema": {"w": torch.full((2,), 0.5 * epoch)}, "updates": 9}, tmp_path / f"epoch{epoch}.pt")
    stripped = {"epoch": -1, "model": {"w": torch.ones(2)}, "ema": None, "updates": None, "optimizer": None}
    for name in ("best.pt", "last.pt"):
        torch.save(stripped, tmp_path / name)
    done = cli("average", tmp_path, "--half-life", "1ep", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done
    assert all(
        f"{name} is passed over: records no clock; its optimizer was stripped" in done.err
        for name in ("best.pt", "last.pt")
    )
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [1.5, 1.5]

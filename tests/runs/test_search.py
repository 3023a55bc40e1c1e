"""What a search of a folder takes for checkpoints, what it passes over, and what must not stop it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli import averaging, preparing
from ema_cli.errors import CheckpointError, IncompleteCheckpoint, NoWeights, RunError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import Run, open_run
from ema_cli.text import natural_key
from ema_cli.writing.target import parse_target
from tests.conftest import make_tensors, write_hf_run, write_torch_run

FOUR = Recipe(half_life=Time.parse("4ba"))


def names(run: Run) -> list[str]:
    return [each.name for each in run.checkpoints]


def passed_over(run: Run) -> dict[str, str]:
    return {each.name: each.reason for each in run.passed_over}


def half_write(path: Path) -> None:
    """Leave the first half of a checkpoint, as a writer that died does."""
    torch.save({"model": make_tensors(9), "step": 9}, path)
    os.truncate(path, path.stat().st_size // 2)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail where the body hangs."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_natural_order_counts():
    """step-9 comes before step-10, whatever stands around the numbers."""
    texts = ["step-10.pt", "step-9.pt", "step-100.pt", "a/step-2.pt", "step-9-b.pt", "9", "step"]
    ordered = ["9", "a/step-2.pt", "step", "step-9-b.pt", "step-9.pt", "step-10.pt", "step-100.pt"]
    assert sorted(texts, key=natural_key) == ordered


def test_training_state_beside_weights_is_no_checkpoint(tmp_path: Path):
    """Optimizer, scheduler, RNG and argument files are never taken for weights, sub-folders included."""
    write_torch_run(tmp_path / "run", [100, 200])
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"):
        torch.save({"state": {"a": torch.zeros(2)}}, tmp_path / "run" / name)
    torch.save([1], tmp_path / "run" / "random_states_0.pkl")
    (tmp_path / "run" / "README.md").write_text("hello")
    (tmp_path / "run" / "logs").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "run" / "logs" / "optimizer.bin")
    run = open_run([tmp_path / "run"])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    assert run.passed_over == ()


def test_a_hugging_face_run_is_its_checkpoint_folders(tmp_path: Path):
    """Each checkpoint-N is one checkpoint, none of the files in it is."""
    write_hf_run(tmp_path, [1000, 200, 30])
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    assert run.passed_over == ()


def test_a_model_beside_its_own_checkpoints_is_passed_over(tmp_path: Path):
    """What save_model() leaves in the folder above checkpoint-N does not count, and the copies in it neither."""
    write_hf_run(tmp_path, [100, 200])
    for name in ("model.safetensors", "config.json", "trainer_state.json"):
        shutil.copy(tmp_path / "checkpoint-200" / name, tmp_path / name)
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    assert passed_over(run) == {"(this folder)": "a model beside its own checkpoints"}


def test_a_final_model_beside_numbered_files_does_not_hide_them(tmp_path: Path):
    """model.safetensors next to step-N files is not taken for the whole run."""
    write_torch_run(tmp_path, [100, 200])
    save_file(make_tensors(200), tmp_path / "model.safetensors")
    run = open_run([tmp_path])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    assert len(passed_over(run)) == 1


def test_a_single_hugging_face_folder_is_one_checkpoint(tmp_path: Path):
    """A folder with a model and no checkpoint-N in it is itself what is meant."""
    write_hf_run(tmp_path, [100])
    run = open_run([tmp_path / "checkpoint-100"])
    assert names(run) == ["checkpoint-100"]
    assert run.root == tmp_path


def test_dot_and_unfinished_names_do_not_enter(tmp_path: Path):
    """Dot files are silent; names that writers use until they are done are listed with a warning."""
    write_torch_run(tmp_path, [100])
    for name in (".step-200.pt", "step-300.pt.tmp", "step-400.pt.part", "step-500.incomplete", "tmp-step-600.pt"):
        torch.save({"model": make_tensors(1), "step": 1}, tmp_path / name)
    write_hf_run(tmp_path / "tmp-checkpoint-700", [1])
    write_torch_run(tmp_path / ".cache", [800])
    run = open_run([tmp_path])
    assert names(run) == ["step-100.pt"]
    expected = {"step-300.pt.tmp", "step-400.pt.part", "step-500.incomplete", "tmp-step-600.pt", "tmp-checkpoint-700"}
    assert passed_over(run) == dict.fromkeys(expected, "unfinished, as its name says")
    assert all(each.warn for each in run.passed_over)


@pytest.mark.parametrize("name", ["ema", "EMA", "unet_ema"])
def test_a_folder_of_averages_is_passed_over_in_a_search(tmp_path: Path, name: str):
    """`ema/` and the like hold averages: listed, not averaged."""
    write_torch_run(tmp_path, [100, 200])
    write_torch_run(tmp_path / name, [300])
    run = open_run([tmp_path])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    assert passed_over(run) == {name: "averages, as its name says (1 checkpoint, the newest at 300ba)"}


@pytest.mark.parametrize("named", ["ema", "ema/step-300.pt", "unet_ema"])
def test_a_folder_of_averages_is_refused_when_it_is_named(tmp_path: Path, named: str):
    """Averaging averages smooths twice: exit 4, with the way to insist."""
    write_torch_run(tmp_path / "ema", [300, 400])
    (tmp_path / "unet_ema").mkdir()
    save_file(make_tensors(1), tmp_path / "unet_ema" / "model.safetensors")
    spacing = Time.parse("1ba") if named == "unet_ema" else None
    plan = make_plan(open_run([tmp_path / named], spacing=spacing), FOUR)
    with pytest.raises(RunError, match=r"is averaged already: it is in a folder of averages, by its name") as raised:
        preparing.refuse_averaged(plan)
    assert "weights='ema'" in (raised.value.hint or "")


@pytest.mark.parametrize("target", ["release.safetensors", "ema-4ba"])
def test_our_own_output_is_passed_over_in_a_search_and_refused_when_named(tmp_path: Path, target: str):
    """An average in the run's own folder does not enter the next one: file or folder, whatever its name."""
    write_hf_run(tmp_path / "run", [100, 200])
    plan = make_plan(open_run([tmp_path / "run"]), FOUR)
    averaging.average(plan, parse_target(tmp_path / "run" / target))
    run = open_run([tmp_path / "run"])
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    assert passed_over(run) == {target: "averaged by ema-cli"}
    for others in ([], [tmp_path / "run" / "checkpoint-200"]):
        with pytest.raises(RunError, match=rf"{target}: is averaged already: ema-cli made it"):
            preparing.refuse_averaged(make_plan(open_run([tmp_path / "run" / target, *others]), FOUR))


def test_half_written_files_are_passed_over_in_a_search_and_refused_when_named(tmp_path: Path):
    """Of the newest a search warns and goes on, of others an average stops; one that is named is exit 3."""
    write_torch_run(tmp_path, [100, 200])
    half_write(tmp_path / "step-300.pt")
    (tmp_path / "step-400.pt").write_bytes(b"")
    (tmp_path / "step-500.safetensors").write_bytes(b"")
    save_file(make_tensors(1), tmp_path / "step-600.safetensors")
    os.truncate(tmp_path / "step-600.safetensors", 250)
    run = open_run([tmp_path])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    bad = {"step-300.pt", "step-400.pt", "step-500.safetensors", "step-600.safetensors"}
    assert {each.name for each in run.passed_over if each.warn} == bad
    assert passed_over(run)["step-600.safetensors"].startswith("half-written: ")
    assert {each.name for each in run.damaged} == bad - {"step-600.safetensors"}
    for name in bad:
        with pytest.raises(IncompleteCheckpoint, match=name) as raised:
            open_run([tmp_path / "step-100.pt", tmp_path / name])
        assert raised.value.exit_code == 3


def test_no_complete_checkpoint_at_all(tmp_path: Path):
    """Where all are half-written, the error says so and names one; where there is none, what is read."""
    half_write(tmp_path / "step-300.pt")
    with pytest.raises(IncompleteCheckpoint, match=r"no complete checkpoint: .*step-300.pt"):
        open_run([tmp_path])
    (tmp_path / "step-300.pt").unlink()
    with pytest.raises(NoWeights, match="no checkpoint in this folder") as raised:
        open_run([tmp_path])
    assert raised.value.exit_code == 3
    assert ".safetensors" in (raised.value.hint or "")


def test_shards_without_their_index_are_half_written(tmp_path: Path):
    """The index is written last: a folder without it is not there yet."""
    write_hf_run(tmp_path, [100, 200])
    folder = tmp_path / "checkpoint-200"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100"]
    assert passed_over(run)["checkpoint-200"].startswith("half-written: holds shards, but no model.safetensors.index")
    with pytest.raises(IncompleteCheckpoint, match=r"checkpoint-200: holds shards"):
        open_run([folder])


def test_several_runs_in_one_folder_are_listed(tmp_path: Path):
    """Which runs, with how many checkpoints each; nothing is mixed."""
    write_torch_run(tmp_path / "seed-a", [100, 200])
    write_hf_run(tmp_path / "seed-b", [100, 200, 300])
    with pytest.raises(RunError, match=r"holds the checkpoints of 2 runs: seed-a \(2\), seed-b \(3\)$") as raised:
        open_run([tmp_path])
    assert raised.value.exit_code == 4


def test_one_folder_for_each_checkpoint_is_one_run(tmp_path: Path):
    """step-100/model.pt, step-200/model.pt, and metric names that became sub-folders, are one run."""
    write_torch_run(tmp_path / "a" / "step-100", [100], name="model.pt")
    write_torch_run(tmp_path / "a" / "step-200", [200], name="model.pt")
    assert names(open_run([tmp_path / "a"])) == ["step-100/model.pt", "step-200/model.pt"]
    for step, loss in ((20, 1.03), (40, 0.98)):
        write_torch_run(tmp_path / "b" / f"epoch=00-step={step:06}-train", [step], name=f"loss={loss}.ckpt")
    assert names(open_run([tmp_path / "b"])) == [
        "epoch=00-step=000020-train/loss=1.03.ckpt",
        "epoch=00-step=000040-train/loss=0.98.ckpt",
    ]


def test_links_that_lead_in_circles_end(tmp_path: Path):
    """A link to a folder above, one to itself and one to nothing do not hang or fail the search."""
    write_torch_run(tmp_path / "run", [100, 200])
    (tmp_path / "run" / "up").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "self.pt").symlink_to("self.pt")
    (tmp_path / "run" / "gone.pt").symlink_to("nowhere.pt")
    with at_most(20):
        run = open_run([tmp_path / "run"])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    nowhere = "a link that leads nowhere"
    assert passed_over(run) == {
        "up": "a link to a folder that is read already",
        "self.pt": nowhere,
        "gone.pt": nowhere,
    }
    for name in ("self.pt", "gone.pt"):
        with at_most(20), pytest.raises(CheckpointError, match=name):
            open_run([tmp_path / "run" / name])


@pytest.mark.parametrize("name", ["step-50.safetensors", "step-50.pt", "trainer_state.json", "model.safetensors"])
def test_a_pipe_does_not_hang_us(tmp_path: Path, name: str):
    """A FIFO in the folder is passed over or refused; opening it would wait for ever."""
    write_hf_run(tmp_path, [100, 200])
    os.mkfifo(tmp_path / name)
    with at_most(20):
        if name.startswith("step"):
            assert names(open_run([tmp_path])) == ["checkpoint-100", "checkpoint-200"]
        else:
            (tmp_path / "checkpoint-200" / name).unlink()
            os.mkfifo(tmp_path / "checkpoint-200" / name)
        with pytest.raises(CheckpointError, match=r"is not a regular file|not a checkpoint"):
            open_run([tmp_path / (name if name.startswith("step") else "checkpoint-200")])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"x" * 300, id="longer than a file name"),
        pytest.param(b"x" * 4096, id="longer than a path"),
        pytest.param(b'{"a": 1}', id="JSON"),
        pytest.param(b"nowhere.pt", id="a pointer to nothing"),
        pytest.param(b"\xff\xfe garbage", id="no text"),
    ],
)
def test_a_text_file_with_a_checkpoints_name_is_damaged(tmp_path: Path, text: bytes):
    """What neither is a checkpoint nor points to one is said, however long or odd; named, it is exit 3."""
    write_torch_run(tmp_path, [100])
    (tmp_path / "step-200.pt").write_bytes(text)
    run = open_run([tmp_path])
    reason = "damaged (200ba; an average needs --skip-damaged): not a checkpoint of a format that is read"
    assert passed_over(run) == {"step-200.pt": reason}
    assert [each.error.exit_code for each in run.damaged] == [3]
    with pytest.raises(CheckpointError, match=r"step-200\.pt: not a checkpoint of a format that is read"):
        open_run([tmp_path / "step-200.pt"])


def test_names_that_would_steer_a_terminal_are_escaped(tmp_path: Path):
    """Control characters and bytes that are no text, in names of files and folders, are harmless in messages."""
    folder = tmp_path / "evil\x1b[2J"
    write_torch_run(folder, [100])
    odd = folder / os.fsdecode(b"step-200-\xff\r.pt")
    half_write(odd)
    run = open_run([folder])
    assert names(run) == ["step-100.pt"]
    with pytest.raises(IncompleteCheckpoint) as raised:
        open_run([odd])
    assert str(raised.value).isprintable()
    assert "evil\\x1b[2J/step-200-\\udcff\\r.pt" in str(raised.value)

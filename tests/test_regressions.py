"""What once went wrong on the command line, each named by what it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import COMPOSER, Cli, make_tensors, write_hf_run, write_torch_run


def save_dicts(folder: Path, **files: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        torch.save(content, folder / f"{name}.pt")


def test_a_buffer_named_step_was_lost_from_a_bare_state_dict(cli: Cli, tmp_path: Path):
    """A tensor that gives the clock is a tensor of the model all the same."""
    for step in (10, 20):
        save_dicts(tmp_path / "run", **{f"m{step}": {"w": torch.ones(2), "step": torch.tensor(step)}})
    assert cli("average", "run", "--half-life", "10ba", "-o", "x.safetensors").code == 0
    assert load_file(tmp_path / "x.safetensors")["step"].item() == 20


def test_numbered_checkpoints_beside_a_model_were_lost(cli: Cli, tmp_path: Path):
    """Files with clocks in their names are the run; the model beside them is passed over, and listed."""
    write_torch_run(tmp_path / "run", [100, 200])
    torch.save(make_tensors(9), tmp_path / "run" / "pytorch_model.bin")
    told = cli("inspect", "run", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == ["step-100.pt", "step-200.pt"]
    assert told["passed_over"] == [{"name": "(this folder)", "reason": "a model beside its own checkpoints"}]


def test_checkpoints_one_level_below_a_model_were_lost(cli: Cli, tmp_path: Path):
    """A final model above a folder of checkpoints does not hide them."""
    write_hf_run(tmp_path / "run" / "checkpoints", [100, 200])
    save_file(make_tensors(9), tmp_path / "run" / "model.safetensors")
    told = cli("inspect", "run", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [
        "checkpoints/checkpoint-100",
        "checkpoints/checkpoint-200",
    ]


def test_one_batch_with_two_epochs_was_not_compared(cli: Cli, tmp_path: Path):
    """Checkpoints with one clock in the law's unit are compared, whatever their other clocks say."""
    clocks = [(100, 1), (200, 2), (200, 3), (300, 4)]
    content = {f"m{n}": {"model": make_tensors(n), "step": s, "epoch": e} for n, (s, e) in enumerate(clocks)}
    save_dicts(tmp_path / "run", **content)
    done = cli("average", "run", "--half-life", "100ba")
    assert done.code == 4
    assert "m2.pt: has the same clock as m1.pt, but 'layer.weight' differs" in done.err


def test_key_threw_the_trainer_s_clocks_away(cli: Cli, tmp_path: Path):
    """--key says where the weights are; the clocks are the trainer's all the same."""
    for number, name in ((12, "ep0-ba12-rank0.pt"), (24, "ep1-ba24-rank0.pt")):
        (tmp_path / f"m{number}.pt").write_bytes((COMPOSER / "every-batch" / name).read_bytes())
    told = cli("inspect", "m12.pt", "m24.pt", "--key", "state.model", "--json").json["run"]["checkpoints"]
    assert [each["clocks"]["ba"]["value"] for each in told] == [12, 24]
    assert [each["clocks"]["ep"]["value"] for each in told] == [1, 2]


def test_half_epochs_in_names_were_cut(cli: Cli, tmp_path: Path):
    """epoch-1.5 is one and a half epochs."""
    for epoch in ("0.5", "1.5", "2"):
        save_file(make_tensors(1), tmp_path / f"epoch-{epoch}.safetensors")
    told = cli("inspect", ".", "--json").json["run"]["checkpoints"]
    assert [each["clocks"]["ep"]["value"] for each in told] == [0.5, 1.5, 2]


def test_an_averaged_model_in_safetensors_was_averaged_again(cli: Cli, tmp_path: Path):
    """n_averaged gives it away in any container."""
    for step in (1, 2):
        tensors = {"module.w": torch.ones(2), "n_averaged": torch.tensor(step)}
        save_file(tensors, tmp_path / f"step-{step}.safetensors")
    done = cli("average", ".", "--half-life", "1ba")
    assert (done.code, "an AveragedModel" in done.err) == (4, True)


def test_metadata_of_others_brought_inspect_down(cli: Cli, tmp_path: Path):
    """Whatever stands under our metadata key, it is shown only if it is as we write it."""
    for recipe in (
        '{"checkpoints": 5}',
        '{"checkpoints": [["a", "1ba", NaN]]}',
        "[]",
        "{",
        '{"checkpoints":[["a","b",1]]}',
    ):
        save_file(make_tensors(1), tmp_path / "x.safetensors", metadata={"ema_cli": recipe})
        done = cli("inspect", "x.safetensors")
        assert done.code == 0
        assert "Averaged by" not in done.out
        assert cli("inspect", "x.safetensors", "--json").json["recipe"] == {}


def test_own_output_in_the_run_folder_broke_the_next_call(cli: Cli, tmp_path: Path):
    """Our outputs are passed over in a search before any option is applied to them."""
    write_torch_run(tmp_path / "run", [100, 200])
    assert cli("average", ".", "--half-life", "100ba", cwd=tmp_path / "run").code == 0
    for options in (["--key", "model"], ["--weights", "raw"]):
        assert cli("average", ".", "--half-life", "100ba", "-f", *options, cwd=tmp_path / "run").code == 0


def test_the_spelling_of_a_path_changed_the_bytes(cli: Cli, tmp_path: Path):
    """Names in the metadata do not depend on where one stands."""
    write_hf_run(tmp_path / "run", [100, 200])
    cli("average", "run/checkpoint-100", "run/checkpoint-200", "--half-life", "100ba", "-o", "a.safetensors")
    inside = tmp_path / "run" / "checkpoint-100"
    cli("average", ".", "../checkpoint-200", "--half-life", "100ba", "-o", "../../b.safetensors", cwd=inside)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.slow
def test_a_reader_that_leaves_early_ends_it_with_141(tmp_path: Path):
    """A closed pipe is neither an error of ours nor a success."""
    write_torch_run(tmp_path / "run", list(range(1, 400)))
    command = (
        f"{sys.executable} -m ema_cli inspect run --half-life 20ba | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("141", "")


@pytest.mark.slow
def test_streams_that_cannot_show_everything(program: Cli, tmp_path: Path):
    """A closed stdout and an encoding without the name's letters are no reason to fail."""
    write_torch_run(tmp_path / "s\u00e9", [1, 2])
    done = program("inspect", "s\u00e9", "--half-life", "1ba", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, r"s\xe9" in done.out) == (0, True)
    command = f"{sys.executable} -m ema_cli average s\u00e9 --half-life 1ba >&-"
    closed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (closed.returncode, "Traceback" in closed.stderr) == (0, False)


def test_names_that_lead_nowhere_are_listed(cli: Cli, tmp_path: Path):
    """A dangling link and a FIFO under a checkpoint's name are passed over, and said to be."""
    write_torch_run(tmp_path / "run", [1, 2])
    (tmp_path / "run" / "step-3.pt").symlink_to("gone.pt")
    os.mkfifo(tmp_path / "run" / "step-4.safetensors")
    (tmp_path / "run" / "train.bin").write_bytes(bytes(range(256)))
    warnings = cli("average", "run", "--half-life", "1ba").err
    assert "step-3.pt is passed over: a link that leads nowhere" in warnings
    assert "step-4.safetensors is passed over: not a regular file" in warnings
    assert "train.bin is passed over: no weights: not a checkpoint" in warnings


def test_empty_option_values_were_ignored(cli: Cli, tmp_path: Path):
    """An empty time is no time."""
    write_torch_run(tmp_path / "run", [1, 2])
    for option in ("--spacing", "--epoch-length"):
        assert cli("average", "run", "--half-life", "1ba", option, "").code == 2
    assert cli("average", "run", "--half-life", "1ba", "-o", ".", "-f").code == 2


def test_a_clock_beyond_all_reason_is_no_clock(cli: Cli, tmp_path: Path):
    """A step of thousands of digits is left out, not a crash."""
    write_hf_run(tmp_path / "run", [100, 200])
    state = {"global_step": 10**400, "epoch": 1.0}
    (tmp_path / "run" / "checkpoint-100" / "trainer_state.json").write_text(json.dumps(state))
    assert cli("inspect", "run", "--half-life", "50ba").code == 0


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_any_number_of_threads_gives_the_same_bytes(cli: Cli, tmp_path: Path, threads: int):
    """Any number of threads gives the same bytes."""
    write_torch_run(tmp_path / "run", [1, 2, 3])
    cli("average", "run", "--half-life", "1ba", "-o", "a.safetensors")
    done = cli("average", "run", "--half-life", "1ba", "-o", "b.safetensors", "--threads", threads)
    assert done.code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_force_replaced_a_checkpoint_that_was_skipped(cli: Cli, tmp_path: Path):
    """No checkpoint of the run is ever replaced, whether it enters or not."""
    for step in (100, 200, 300):
        save_file(make_tensors(step), tmp_path / f"step-{step}.safetensors")
    before = (tmp_path / "step-100.safetensors").read_bytes()
    done = cli("average", ".", "--half-life", "50ba", "--last", "2", "-o", "step-100.safetensors", "--force")
    assert (done.code, "holds an input" in done.err) == (5, True)
    assert (tmp_path / "step-100.safetensors").read_bytes() == before


def test_a_checkpoint_folder_without_weights_is_listed(cli: Cli, tmp_path: Path):
    """A folder with a checkpoint's name, but only optimizer state in it, is passed over, and said to be."""
    write_hf_run(tmp_path / "run", [100, 200])
    (tmp_path / "run" / "checkpoint-300").mkdir()
    torch.save({}, tmp_path / "run" / "checkpoint-300" / "optimizer.pt")
    done = cli("average", "run", "--half-life", "100ba")
    assert (done.code, "checkpoint-300 is passed over: half-written: holds no weights" in done.err) == (0, True)

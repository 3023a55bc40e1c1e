"""Hints are followed: for each situation the command is refused, and as its hint says it succeeds."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.cli.command_line import COMMANDS
from ema_cli.cli.typer_commands import make_command
from tests.conftest import Cli, make_tensors, write_hf_run, write_torch_run

Situation = Callable[[Path], str]
SITUATIONS: list[Situation] = []
FLAGS = {
    spelling
    for name in COMMANDS
    for parameter in make_command(name).params
    if getattr(parameter, "is_flag", False)
    for spelling in parameter.opts
}
OPTION = re.compile(r"(--[a-z][a-z-]*|-o)(?: ('[^']*'|[^\s,;:()'][^\s,;:()]*))?")


def situation(make: Situation) -> Situation:
    """Add a situation: a function that fills a folder and returns a command line that is refused there."""
    SITUATIONS.append(make)
    return make


def followed(words: list[str], hint: str) -> list[str]:
    """Return the command line changed as a hint says first: options left out, added, or given another value."""
    first = OPTION.search(hint)
    assert first is not None, hint
    one_way = hint[: first.end()] + hint[first.end() :].partition(" or ")[0]
    for name, value in OPTION.findall(one_way):
        if name in words:
            at = words.index(name)
            words = words[:at] + words[at + (1 if name in FLAGS else 2) :]
        if "leave out -" not in hint:
            words = [*words, name] if name in FLAGS else [*words, name, *shlex.split(value)]
    return words


@situation
def no_law(folder: Path) -> str:
    """Which half-life?"""
    write_torch_run(folder / "run", [100, 200])
    return "average run -o x.safetensors"


@situation
def a_demand_without_a_law(folder: Path) -> str:
    """Of which average?"""
    write_torch_run(folder / "run", [100, 200])
    return "inspect run --last 2"


@situation
def an_output_that_exists(folder: Path) -> str:
    """It is one of ours."""
    write_torch_run(folder / "run", [100, 200])
    save_file({"w": torch.ones(2)}, folder / "x.safetensors")
    return "average run --half-life 100ba -o x.safetensors"


@situation
def mixed_float_types(folder: Path) -> str:
    """The training changed to bfloat16 on its way."""
    for step, dtype in ((100, torch.float32), (200, torch.bfloat16)):
        torch.save({"model": {"w": torch.ones(4, dtype=dtype)}, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def an_overflow(folder: Path) -> str:
    """What float32 holds is too large for float16."""
    for step in (100, 200):
        torch.save({"model": {"w": torch.full((4,), 1e6)}, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba --dtype float16 -o x.safetensors"


@situation
def no_averages(folder: Path) -> str:
    """There are only raw weights."""
    write_torch_run(folder / "run", [100, 200])
    return "average run --half-life 100ba --weights ema -o x.safetensors"


@situation
def averages_in_the_place_of_the_model(folder: Path) -> str:
    """Lightning's callback keeps the raw weights elsewhere."""
    for step in (100, 200):
        saved = {"state_dict": {"w": torch.ones(2)}, "current_model_state": {"w": torch.zeros(2)}, "epoch": 0}
        saved |= {"pytorch-lightning_version": "2.6.0", "global_step": step, "loops": {}}
        torch.save(saved, folder / f"step={step}.ckpt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def names_that_say_averages(folder: Path) -> str:
    """Nothing in the files says what they hold."""
    for epoch in (1, 2):
        torch.save({"state_dict": {"w": torch.ones(2)}}, folder / f"swa_epoch_{epoch}.pth")
    return "average . --half-life 1ep -o x.safetensors"


@situation
def raw_weights_where_there_are_none(folder: Path) -> str:
    """The optimizers of YOLO's last files were stripped, and the averages took the model's place."""
    for epoch in (1, 2):
        saved = {"epoch": -1, "model": {"w": torch.ones(2)}, "ema": None, "updates": None}
        torch.save(saved, folder / f"epoch{epoch}.pt")
    return "average . --half-life 1ep --weights raw -o x.safetensors"


@situation
def averages_that_have_not_begun(folder: Path) -> str:
    """In all checkpoints they are the untrained model."""
    for step in (100, 200):
        averaged = {"n_averaged": torch.tensor(0), "module.w": torch.zeros(2)}
        torch.save({"model": {"w": torch.ones(2)}, "model_ema": averaged, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba --weights ema -o x.safetensors"


@situation
def a_teacher_that_does_not_move(folder: Path) -> str:
    """It is no average of its student."""
    for step in (100, 200):
        saved = {"student": {"w": torch.full((2,), float(step))}, "teacher": {"w": torch.ones(2)}, "step": step}
        torch.save(saved, folder / f"step-{step}.pt")
    return "average . --half-life 100ba --weights ema -o x.safetensors"


@situation
def weights_under_two_names(folder: Path) -> str:
    """Either could be the model."""
    for step in (100, 200):
        both = {"model": {"w": torch.ones(2)}, "module": {"w": torch.zeros(2)}}
        torch.save({**both, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def weights_nested_deeper(folder: Path) -> str:
    """In no place that is known."""
    for step in (100, 200):
        torch.save({"app": {"net": {"w": torch.ones(2)}}, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def a_key_of_a_file_without_keys(folder: Path) -> str:
    """Safetensors hold one set of tensors."""
    for step in (100, 200):
        save_file(make_tensors(step), folder / f"step-{step}.safetensors")
    return "average . --half-life 100ba --key model -o x.safetensors"


@situation
def a_component_of_one_model(folder: Path) -> str:
    """There is nothing to choose."""
    write_torch_run(folder / "run", [100, 200])
    return "average run --half-life 100ba --component unet -o x.safetensors"


@situation
def several_models_of_accelerate(folder: Path) -> str:
    """A generator and a discriminator, say."""
    for step in (100, 200):
        checkpoint = folder / "run" / f"step_{step}"
        checkpoint.mkdir(parents=True)
        for name in ("model", "model_1"):
            save_file(make_tensors(step), checkpoint / f"{name}.safetensors")
    return "average run --half-life 100ba -o x.safetensors"


@situation
def networks_beside_each_other(folder: Path) -> str:
    """Files of VITS: a discriminator and a generator for each moment."""
    for step in (100, 200):
        for name in ("D", "G"):
            torch.save({"model": {name: torch.ones(2)}, "step": step}, folder / f"{name}_{step}.pth")
    return "average . --half-life 100ba --component g -o x.safetensors"


@situation
def averages_in_the_place_of_the_model_that_have_not_begun(folder: Path) -> str:
    """The raw weights are where Lightning puts them."""
    for step in (100, 200):
        saved = {"state_dict": {"w": torch.ones(2)}, "current_model_state": {"w": torch.zeros(2)}, "epoch": 0}
        saved |= {"pytorch-lightning_version": "2.6.0", "global_step": step, "averaging_state": {"n_averaged": 0}}
        torch.save(saved, folder / f"step={step}.ckpt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def weights_in_a_list(folder: Path) -> str:
    """The networks have no names, but places."""
    for step in (100, 200):
        torch.save({"nets": [{"w": torch.ones(2)}, {"v": torch.ones(2)}], "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def two_names_that_become_one(folder: Path) -> str:
    """A prefix of a wrapper's is part of a name."""
    for step in (100, 200):
        model = {"_orig_mod.w": torch.ones(2), "w": torch.zeros(2)}
        torch.save({"model": model, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def a_state_that_is_no_tensor(folder: Path) -> str:
    """Only the module's own code can read it."""
    for step in (100, 200):
        model = {"w": torch.ones(2), "layer._extra_state": {"scale": [1.0]}}
        torch.save({"model": model, "step": step}, folder / f"step-{step}.pt")
    return "average . --half-life 100ba -o x.safetensors"


@situation
def too_little_memory(folder: Path) -> str:
    """The error knows how much it takes."""
    write_torch_run(folder / "run", [100, 200])
    return "average run --half-life 100ba --max-memory 1MB -o x.safetensors"


@situation
def shards_of_one_file(folder: Path) -> str:
    """They need a folder."""
    write_torch_run(folder / "run", [100, 200])
    return "average run --half-life 100ba --max-shard-size 1MB -o x.safetensors"


@situation
def a_profile_without_a_width(folder: Path) -> str:
    """The power profile has one."""
    write_torch_run(folder / "run", [100, 200, 300])
    return "average run --profile power -o x.safetensors"


@situation
def no_clock_at_all(folder: Path) -> str:
    """Neither the files nor their names have one."""
    for name in ("alpha", "beta", "gamma"):
        save_file(make_tensors(len(name)), folder / f"{name}.safetensors")
    return "average alpha.safetensors beta.safetensors gamma.safetensors --half-life 100ba -o x.safetensors"


@situation
def a_number_of_which_unit(folder: Path) -> str:
    """The names have numbers that grow."""
    for number in (10, 20, 40):
        torch.save(make_tensors(number), folder / f"model_{number}.pt")
    return "average . --half-life 20ba -o x.safetensors"


@situation
def one_foreign_model(folder: Path) -> str:
    """Somebody's pretrained file lies among the checkpoints."""
    write_torch_run(folder / "run", [100, 200, 300])
    torch.save({"model": {"other": torch.ones(3)}, "step": 250}, folder / "run" / "step-250.pt")
    return "average run --half-life 100ba -o x.safetensors"


@situation
def a_damaged_checkpoint_in_the_middle(folder: Path) -> str:
    """It was cut short when it was copied."""
    write_torch_run(folder / "run", [100, 200, 300])
    whole = (folder / "run" / "step-200.pt").read_bytes()
    (folder / "run" / "step-200.pt").write_bytes(whole[: len(whole) // 2])
    return "average run --half-life 100ba -o x.safetensors"


@situation
def epochs_that_go_back(folder: Path) -> str:
    """The run was resumed with more data."""
    write_hf_run(folder / "run", [100, 200, 300, 400])
    for step, epoch in ((300, 0.75), (400, 1.5)):
        state = {"epoch": epoch, "global_step": step}
        (folder / "run" / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return "average run --half-life 1ep -o out"


@situation
def spacing_over_recorded_clocks(folder: Path) -> str:
    """A habit must not falsify good ones."""
    write_torch_run(folder / "run", [100, 200, 300])
    return "average run --half-life 100ba --spacing 100ba -o x.safetensors"


@pytest.mark.parametrize("make", SITUATIONS, ids=lambda make: make.__name__)
def test_a_hint_that_is_followed_helps(cli: Cli, tmp_path: Path, make: Situation):
    """The first command fails with a hint; the command that the hint says does what was wanted."""
    words = shlex.split(make(tmp_path))
    refused = cli(*words)
    assert refused.code not in (0, 1), refused.err
    hint = refused.err.partition("hint:  ")[2].splitlines()[0]
    for _ in range(2):  # an option may need a value, which the next hint knows
        words = followed(words, hint)
        done = cli(*words)
        if done.code == 0:
            break
        hint = done.err.partition("hint:  ")[2].splitlines()[0]
    assert done.code == 0, (hint, words, done.err)


@pytest.mark.parametrize("names", [("a.pt", "b.pt"), ("model_10.pt", "model_20.pt"), ("100.pt", "200.pt"), ("7", "9")])
def test_inspect_says_how_a_run_gets_clocks(cli: Cli, tmp_path: Path, names: tuple[str, ...]):
    """It shows the run, and each option that it names makes an average of it."""
    for name in names:
        path = tmp_path / "run" / (name if "." in name else f"{name}/model.pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": {"w": torch.ones(2)}}, path)
    told = cli("inspect", "run")
    assert told.code == 0
    (ways,) = [line for line in told.out.splitlines() if "an average by half-life needs clocks" in line]
    options = OPTION.findall(ways)
    assert {name for name, _ in options} >= {"--spacing", "--profile"}
    assert ("--name-clock" in ways) == ("a.pt" not in names)
    for number, (name, value) in enumerate(options):
        law = () if name == "--profile" else ("--half-life", "100ba")
        assert cli("average", "run", *law, name, value, "-o", f"{number}.safetensors").code == 0
    assert cli("inspect", "run", "--strict").code == 0


def test_a_packed_checkpoint_is_unpacked_as_the_hint_says(cli: Cli, tmp_path: Path):
    """The command of the hint is for a shell, and can be pasted."""
    write_torch_run(tmp_path / "my run", [100, 200])
    packed = tmp_path / "my run" / "step-200.pt"
    Path(f"{packed}.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    refused = cli("average", "my run", "--half-life", "100ba", "-o", "x.safetensors")
    assert refused.code == 3
    command = refused.err.partition("hint:  unpack it: ")[2].partition("; or ")[0].strip()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert cli("average", "my run", "--half-life", "100ba", "-o", "x.safetensors").code == 0

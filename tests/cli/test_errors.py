"""What goes wrong on the command line: usage errors and faults, each with its code, a line and a hint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.cli import other_words
from ema_cli.cli.command_line import COMMANDS
from ema_cli.cli.typer_commands import make_command
from tests.conftest import COMPOSER, Cli, make_tensors, oracle, write_torch_run

USAGE = [
    (
        ["average", "ckpts"],
        "one of --half-life, --smoothing, --profile and --coefficients is needed\n"
        "hint:  for instance --half-life 50ba: after 50 batches a checkpoint counts half; "
        "the newest checkpoint alone needs none: --last 1",
    ),
    (["average", "--half-life", "50ba"], "which checkpoints?"),
    (["average", "none", "--half-life", "50ba"], "none: does not exist"),
    (["average", "ckpts", "--half-life", "50"], "--half-life: '50' is not a time"),
    (["average", "ckpts", "--half-life", "-5ba"], "--half-life: '-5ba' is not a time"),
    (["average", "ckpts", "--half-life", "nanba"], "--half-life: 'nanba' is not a time"),
    (["average", "ckpts", "--half-life", "1e99ba"], "--half-life: '1e99ba' is out of range"),
    (["average", "ckpts", "--half-life", "5min"], "--half-life: '5min' is not a time"),
    (
        ["average", "ckpts", "--half-life", "5ba", "--smoothing", "0.5"],
        "only one of --half-life, --smoothing, --profile and --coefficients",
    ),
    (
        ["average", "ckpts", "--half-life", "5ba", "--window", "9ba"],
        "--window is the stretch over which a profile is laid, and goes with one of uniform, linear, 1-sqrt, cosine, "
        "inverse-sqrt\nhint:  as --profile linear --window 9ba\n",
    ),
    (["average", "ckpts", "--smoothing", "1.5"], "--smoothing: 1.5 is not in [0, 1]"),
    (["average", "ckpts", "--smoothing", "nan"], "--smoothing: nan is not in [0, 1]"),
    (["average", "ckpts", "--smoothing", "x"], "Invalid value for '--smoothing'"),
    (["average", "ckpts", "--half-life", "5ba", "--update-interval", "0ba"], "--update-interval: '0ba' is no distance"),
    (
        ["average", "ckpts", "--half-life", "5ba", "--update-interval", "infba"],
        "--update-interval: 'infba' is no distance",
    ),
    (
        ["average", "ckpts", "--half-life", "5ba", "--update-interval", "1ep"],
        "--update-interval: '1ep' and --half-life '5ba' have different units",
    ),
    (
        ["average", "ckpts", "--half-life", "5ba", "--update-interval", "often"],
        "--update-interval: 'often' is not a time",
    ),
    (["average", "ckpts", "--half-life", "5ba", "--start", "5"], "--start: '5' is not a time"),
    (["average", "ckpts", "--half-life", "5ba", "--stop", "x"], "--stop: 'x' is not a time"),
    (["average", "ckpts", "--half-life", "5ba", "--start", "infba"], "--start: infinity"),
    (["average", "ckpts", "--half-life", "5ba", "--last", "0"], "--last: 0 is not a number of checkpoints"),
    (["average", "ckpts", "--half-life", "5ba", "--threads", "0"], "--threads: 0 is not a number of threads"),
    (["average", "ckpts", "--half-life", "5ba", "--dtype", "int8"], "--dtype: 'int8' cannot be written"),
    (["average", "ckpts", "--half-life", "5ba", "--weights", "both"], "--weights: 'both' is neither raw nor ema"),
    (["average", "ckpts", "--half-life", "5ba", "-o", "x.bin"], "--output: 'x.bin' ends in .bin, which is not written"),
    (["average", "ckpts", "--half-life", "5ba", "--epoch-length", "1ep"], "--epoch-length: '1ep' is not a number of"),
    (["average", "ckpts", "--half-life", "5ba", "--epoch-length", "0ba"], "--epoch-length: '0ba' is not a number of"),
    (["average", "ckpts", "--half-life", "5sp", "--spacing", "0sp"], "--spacing: '0sp' is no distance"),
    (["average", "ckpts", "--half-life", "5ba", "--half-life", "5.0ba"], "--half-life: '5.0ba' is given twice"),
    (["inspect", "ckpts", "--half-life", "5ba", "--half-life", "5ba"], "--half-life: '5ba' is given twice"),
    (["inspect", "ckpts", *("--half-life", "5ba", "--half-life", "6")], "--half-life: '6' is not a time"),
    (
        ["average", "ckpts", "--half-life", "5ba", "--half-life", "6ba", "--smoothing", "0.5"],
        "only one of --half-life, --smoothing, --profile and --coefficients",
    ),
    (
        ["average", "ckpts", "--half-life", "5ba", "--half-life", "6ep", "--update-interval", "1ba"],
        "--update-interval: '1ba' and --half-life '6ep' have different units",
    ),
    (
        ["average", "ckpts", "--half-life", "5ba", "--half-life", "6ba", "-o", "x.safetensors"],
        "--output: 'x.safetensors' is one file, for 2 averages",
    ),
    (
        ["average", "ckpts", "--half-life", "5ba", "--half-life", "6ba", "-o", "x-{half_life}.safetensors"],
        "--output: 'x-{half_life}.safetensors' names no new folder for the averages",
    ),
    (["average", "ckpts", "--half-life", "5ba", "-o", "x-{halflife}"], "--output: 'x-{halflife}': {halflife} is no"),
    (["average", "ckpts", "--half-life", "5ba", "--max-memory", "200"], "--max-memory: '200' is not a size"),
    (["average", "ckpts", "--half-life", "5ba", "--max-memory", "-1GB"], "--max-memory: '-1GB' is not a size"),
    (["inspect", "ckpts", "--last", "3"], "which law? --last needs one\nhint:  add --half-life 50ba"),
    (["average", "ckpts", "--no-such-option"], "No such option: --no-such-option"),
    (["average", "ckpts", "--device", "cuda"], "No such option: --device\nhint:  nothing runs on a device"),
    (["average", "hdfs://host/run", "--half-life", "5ba"], "hdfs://host/run: is the address of a store or server"),
    (["average", "ckpts", "--half-life", "5ba", "-o", "https://b/x"], "https://b/x: is on a web server, from which"),
    (["average", "ckpts", "--half-life", "5ba", "-o", "ftp://b/x"], "ftp://b/x: is the address of a store or server"),
    (["inspect", "hdfs://models/x"], "hdfs://models/x: is the address of a store or server"),
    (["verify", "ftp://host/x.safetensors"], "ftp://host/x.safetensors: is the address of a store or server"),
    (["inspect", "s3://"], "s3://: names no bucket"),
    (["inspect", "https://me:secret@host/x.pt"], "https://...@host/x.pt: holds a user's name and password"),
    (["report", "x", "https://host/x.pt?sig=secret"], "Got unexpected extra argument(s) (https://host/x.pt)"),
    (["inspect", "ckpts", "--last", "https://me:secret@host"], "Invalid value for '--last': 'https://...@host"),
    (["no-such-command"], "No such command 'no-such-command'"),
    (["average", "", "--half-life", "5ba", "-o", "x"], "a path is empty"),
    (["average", "ckpts", "--half-life", "5ba", "-o", ""], "a path is empty"),
    (["verify", ""], "a path is empty"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_usage_errors(cli: Cli, run: Path, tmp_path: Path, arguments: list[str], message: str):
    """Every refused value exits with 2, one line that names it, a hint, and nothing written."""
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}"), done.err
    assert len(done.err.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["ckpts"]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("--decay=0.9", "say --smoothing"),
        ("--ema-decay=0.9", "say --smoothing"),
        ("--beta=0.9", "say --smoothing"),
        ("--half_life=5ba", "say --half-life"),
        ("--overwrite", "say --force"),
        ("--out-dir=x", "say --output"),
        ("--num-workers=4", "say --threads"),
        ("-half-life=5ba", "say --half-life"),
        ("-force", "say --force"),
        ("-output", "say --output"),
        ("-overwrite", "say --force"),
        ("-out=x", "say --output"),
        ("-output_dir=x", "say --output"),
        ("-halflife", "say --half-life"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_ours(cli: Cli, typed: str, hint: str):
    """Those who know the thing by another name are told the name that it has here."""
    done = cli("average", "ckpts", typed)
    assert done.code == 2
    assert done.err == f"error: No such option: {typed.partition('=')[0]}\nhint:  {hint}; see ema-cli average --help\n"


def test_letters_that_mean_options_are_read_so(cli: Cli, run: Path, tmp_path: Path):
    """Several in one word, or a value behind one, but no `=`: a file called `=x` is what nobody wants."""
    assert cli("average", run, "--half-life", "100ba", f"-fqo{tmp_path / 'x=y'}").out == f"{tmp_path / 'x=y'}\n"
    done = cli("average", run, "--half-life", "100ba", "-o=x")
    hint = "leave out the '=', or give the option in full; see ema-cli average --help"
    assert done.err == f"error: No such option: -o=\nhint:  {hint}\n"
    assert cli("average", "--", "-out=x").err.startswith("error: one of --half-life,")


def test_an_option_that_is_nearly_one_is_answered_with_it(cli: Cli):
    """In a hint, as all that is to be done; an option that is like none has only the page of help."""
    done = cli("verify", "x", "--agains", "y")
    hint = "did you mean --against? see ema-cli verify --help"
    assert done.err == f"error: No such option: --agains\nhint:  {hint}\n"
    assert cli("verify", "x", "--zzz").err == "error: No such option: --zzz\nhint:  see ema-cli verify --help\n"


def test_the_words_of_other_tools_lead_to_options_that_there_are():
    """Each word of the table is answered by some command that has no such option itself."""
    commands = [set(options_of(name)) for name in COMMANDS]
    for typed, name in other_words.OPTIONS.items():
        without = [options for options in commands if typed not in options]
        assert any(other_words.known_elsewhere(typed, options, "") for options in without), (typed, name)


def options_of(command: str) -> list[str]:
    """Return the spellings of a command's options."""
    return [spelling for parameter in make_command(command).params for spelling in parameter.opts]


def test_a_usage_error_names_the_help_that_lists_what_there_is(cli: Cli):
    """That of the command, where the command is known."""
    assert cli("average", "--no-such-option").err.endswith("hint:  see ema-cli average --help\n")
    assert cli("no-such-command").err.endswith("hint:  see ema-cli --help\n")


def spoil_nothing(_: Path) -> None:
    """Leave the run as it is."""


def spoil_truncate(folder: Path) -> None:
    """Cut a checkpoint short."""
    os.truncate(folder / "step-200.pt", 500)


def spoil_all(folder: Path) -> None:
    """Cut all of them short."""
    for path in folder.iterdir():
        os.truncate(path, 500)


def spoil_shape(folder: Path) -> None:
    """Give one checkpoint another shape."""
    torch.save({"model": {**make_tensors(2), "layer.bias": torch.zeros(9)}, "step": 200}, folder / "step-200.pt")


def spoil_nan(folder: Path) -> None:
    """Put a NaN into one tensor."""
    torch.save(
        {"model": {**make_tensors(2), "layer.bias": torch.full((4,), torch.nan)}, "step": 200}, folder / "step-200.pt"
    )


def spoil_clock(folder: Path) -> None:
    """Save one checkpoint without its step, under a name that says nothing."""
    (folder / "step-200.pt").unlink()
    torch.save({"model": make_tensors(2)}, folder / "model7.pt")


def spoil_runs(folder: Path) -> None:
    """Put a second run beside the first."""
    write_torch_run(folder / "b", [1, 2])
    write_torch_run(folder / "a", [1, 2])


def spoil_output(folder: Path) -> None:
    """Put something in the way of the default output."""
    (folder.parent / "ema-200ba.safetensors").write_bytes(b"mine")


FAULTS: list[tuple[Callable[[Path], None], list[str], int, str, str | None]] = [
    (spoil_truncate, ["ckpts/step-200.pt", "ckpts/step-100.pt"], 3, "ckpts/step-200.pt: cut short", None),
    (spoil_all, ["ckpts"], 3, "ckpts: no complete checkpoint", None),
    (spoil_nothing, ["."], 3, ".: no checkpoint in this folder", None),
    (spoil_shape, ["ckpts"], 4, "step-200.pt: 'layer.bias' is F32 [9], but F32 [4] in step-300.pt", None),
    (spoil_clock, ["ckpts"], 4, "ckpts/model7.pt: records no clock, but step-100.pt does", None),
    (spoil_runs, ["ckpts"], 4, "ckpts: holds the checkpoints of 3 runs: . (3), a (2), b (2)", None),
    (spoil_nothing, ["ckpts", "--start", "900ba"], 4, "ckpts: no checkpoint is left to average", None),
    (spoil_nothing, ["ckpts", "--stop", "1ep"], 4, "ckpts/step-100.pt: records no clock in epochs, which --stop", None),
    (spoil_nothing, ["ckpts", "--spacing", "5ba"], 4, "--spacing 5ba: all checkpoints have a clock in batches", None),
    (spoil_nothing, ["ckpts", "--weights", "ema"], 4, "ckpts/step-100.pt: holds no averages", None),
    (spoil_nothing, ["ckpts", "--key", "other"], 3, "ckpts/step-100.pt: has no tensors under --key other", None),
    (spoil_output, ["ckpts"], 5, "ema-200ba.safetensors: exists already", b"mine".decode()),
    (spoil_nothing, ["ckpts", "-o", "no/x.safetensors"], 5, "no/x.safetensors: the folder", None),
    (spoil_nan, ["ckpts"], 6, "ckpts/step-200.pt: 'layer.bias' is not finite at element 0", None),
    (spoil_nothing, [str(COMPOSER / "ema-was-on")], 4, "is averaged already: Composer's EMA was on", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "paths", "code", "message", "kept"), FAULTS)
def test_faults_have_a_code_a_line_and_a_hint(
    cli: Cli,
    run: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    paths: list[str],
    code: int,
    message: str,
    kept: str | None,
):
    """Each fault exits with its code, names file and tensor, says what to do, and leaves nothing; in JSON too."""
    spoil(run)
    if paths == ["."]:
        for path in run.iterdir():
            path.unlink()
    before = sorted(tmp_path.rglob("*"))
    done = cli("average", *paths, "--half-life", "200ba")
    assert (done.code, done.out) == (code, "")
    error = next(line for line in done.err.splitlines() if line.startswith("error: "))
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before
    told = cli("average", *paths, "--half-life", "200ba", "--json").json
    assert told["error"]["code"] == code
    assert message in told["error"]["message"]
    assert told["error"]["hint"] or code == 3
    if kept is not None:
        assert (tmp_path / "ema-200ba.safetensors").read_text() == kept


def test_half_written_checkpoints_are_passed_over_with_a_warning(cli: Cli, run: Path, tmp_path: Path):
    """In a search the newest, half-written one is left out and named; the rest is averaged."""
    os.truncate(run / "step-300.pt", 500)
    done = cli("average", "ckpts", "--half-life", "100ba")
    assert done.code == 0
    assert "warning: step-300.pt is passed over: half-written: cut short" in done.err
    saved = [make_tensors(100), make_tensors(200)]
    torch.testing.assert_close(load_file(tmp_path / "ema-100ba.safetensors"), oracle(saved, [0.5, 0.5]))


def test_the_trap_is_shown(cli: Cli, run: Path):
    """A half-life far below the spacing is the last checkpoint, and the warning says what would not be."""
    done = cli("average", "ckpts", "--half-life", "10ba")
    assert "warning: step-300.pt holds 99.9% of the average" in done.err
    assert "of the average: the half-life is short for checkpoints this far apart" in done.err
    long = cli("average", "ckpts", "--half-life", "9000ba", "-f")
    assert "warning: step-100.pt holds 98.5% of the average: the half-life is long for this run" in long.err


def test_nothing_of_a_name_reaches_the_terminal_raw(cli: Cli, tmp_path: Path):
    """Escapes, markup and newlines in file and tensor names are shown, not obeyed."""
    evil = "\x1b[31mred[bold]\n"
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        save_file({f"{evil}w": torch.zeros(2)}, tmp_path / "run" / f"{evil}step-{step}.safetensors")
    for arguments in (["inspect", "run", "--half-life", "1ba"], ["average", "run", "--half-life", "1ba"]):
        done = cli(*arguments)
        assert done.code == 0
        assert "\x1b" not in done.out + done.err
    single = cli("inspect", tmp_path / "run" / f"{evil}step-1.safetensors")
    assert r"\x1b[31mred[bold]\nw" in single.out
    bad = cli("average", tmp_path / "run" / f"{evil}none", "--half-life", "1ba")
    assert r"\x1b[31mred[bold]\nnone: does not exist" in bad.err


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_every_width_shows_every_name(cli: Cli, run: Path, columns: str):
    """Whatever the width, every checkpoint has its row, and at the usual width no row is wider than it."""
    done = cli("inspect", "ckpts", "--half-life", "200ba", env={"COLUMNS": columns})
    assert done.code == 0
    assert "of the average" not in done.out
    rows = [line for line in done.out.splitlines() if line.startswith(("checkpoint ", "step-"))]
    assert len(rows) == 4
    assert all(len(line.rstrip()) < 80 for line in rows)


def test_no_colour_without_a_terminal(cli: Cli, run: Path):
    """In a pipe there are no escapes, with or without NO_COLOR."""
    for env in ({}, {"NO_COLOR": "1"}):
        assert "\x1b" not in cli("inspect", "ckpts", "--half-life", "200ba", env=env).out

"""The command line as its users meet it: outputs, options, errors with their codes, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import COMPOSER, Outcome, make_tensors, oracle, write_hf_run, write_torch_run

Cli = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three plain checkpoints, 100 batches apart."""
    write_torch_run(tmp_path / "ckpts", [100, 200, 300])
    return tmp_path / "ckpts"


def test_average_prints_where_and_nothing_else_on_stdout(cli: Cli, run: Path):
    """The path is the result; what people want to know goes to stderr, and -q silences it."""
    done = cli("average", "ckpts", "--half-life", "200ba")
    assert (done.code, done.out) == (0, "ema-200ba.safetensors\n")
    assert "3 checkpoints averaged: 2.6 effective, mean age 120.7ba" in done.err
    assert "2 tensors averaged, 1 copied; read 200 B in " in done.err
    assert re.search(r" s \([\d.]+ k?B/s\), wrote \d+ B, peak memory [\d.]+ MB$", done.err.strip())
    quiet = cli("average", "ckpts", "--half-life", "200ba", "-f", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "ema-200ba.safetensors\n", "")


def test_average_of_named_files_in_any_order(cli: Cli, run: Path, tmp_path: Path):
    """Order on the command line does not matter; the clocks do."""
    cli("average", "ckpts", "--half-life", "200ba", "-o", "a.safetensors")
    files = [f"ckpts/step-{step}.pt" for step in (300, 100, 200)]
    assert cli("average", *files, "--half-life", "200ba", "-o", "b.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_average_in_json(program: Cli, run: Path):
    """One object carries plan, output and warnings; stderr stays empty."""
    done = program("average", "ckpts", "--half-life", "200ba", "--json")
    assert done.err == ""
    told = done.json
    assert (told["schema_version"], told["command"]) == (1, "average")
    assert [(each["name"], each["clock"]) for each in told["plans"][0]["entries"]] == [
        ("step-100.pt", "100ba"),
        ("step-200.pt", "200ba"),
        ("step-300.pt", "300ba"),
    ]
    assert sum(each["weight"] for each in told["plans"][0]["entries"]) == pytest.approx(1)
    written = told["written"]
    assert written["path"] == written["outputs"][0]["path"] == "ema-200ba.safetensors"
    assert (written["bytes_read"], written["bytes_written"]) == (200, written["outputs"][0]["bytes"])
    assert 200 / (written["seconds"] + 0.001) <= written["bytes_per_second"] <= 200 / (written["seconds"] - 0.001)
    assert 10e6 < written["peak_memory_bytes"] < 500e6


def test_dry_run_writes_nothing(cli: Cli, run: Path, tmp_path: Path):
    """The plan and the sizes, no tensor read, no file written; errors of the target included."""
    done = cli("average", "ckpts", "--half-life", "200ba", "--dry-run")
    assert done.code == 0
    assert "Would write ema-200ba.safetensors: reading 200 B, writing" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["ckpts"]
    (tmp_path / "ema-200ba.safetensors").write_bytes(b"")
    assert cli("average", "ckpts", "--half-life", "200ba", "--dry-run").code == 5
    would = cli("average", "ckpts", "--half-life", "200ba", "--dry-run", "--json", "-f").json["would_write"]
    assert would["bytes_to_read"] == 200
    assert [(each["path"], each["files"]) for each in would["outputs"]] == [
        ("ema-200ba.safetensors", ["ema-200ba.safetensors"])
    ]


SEVERAL = ["--half-life", "50ba", "--half-life", "200ba", "--half-life", "infba"]


def test_several_half_lives_come_in_one_folder(cli: Cli, run: Path, tmp_path: Path):
    """One line on stdout, the folder; one line for each half-life on stderr, with its warning."""
    done = cli("average", "ckpts", *SEVERAL)
    assert (done.code, done.out) == (0, "ema-50ba-200ba-infba\n")
    files = [f"ema-{law}.safetensors" for law in ("50ba", "200ba", "infba")]
    names = {f"{name}{suffix}" for name in files for suffix in ("", ".manifest.json", ".sha256")}
    assert {path.name for path in (tmp_path / "ema-50ba-200ba-infba").iterdir()} == names
    assert done.err.splitlines()[:4] == [
        " 50ba: 1.7 effective of 3, mean age 31.25ba; warning: step-300.pt holds 75.0%",
        "200ba: 2.6 effective of 3, mean age 120.7ba",
        "infba: 1.0 effective of 3, mean age 200ba; warning: step-100.pt holds 100.0%",
        "2 tensors averaged, 1 copied; " + done.err.splitlines()[3].partition("; ")[2],
    ]
    assert "; read 208 B in " in done.err
    assert cli("average", "ckpts", *SEVERAL).code == 5
    assert cli("average", "ckpts", *SEVERAL, "-f", "-q").err == ""
    single = cli("average", "ckpts", "--half-life", "50ba", "-o", "x-{half_life}.safetensors")
    assert single.out == "x-50ba.safetensors\n"
    together = tmp_path / "ema-50ba-200ba-infba" / "ema-50ba.safetensors"
    assert (tmp_path / "x-50ba.safetensors").read_bytes() == together.read_bytes()


def test_several_half_lives_in_json(cli: Cli, run: Path, tmp_path: Path):
    """A plan and an output for each, in the order asked for; of a dry run, too."""
    pattern = ["-o", "sweep/x-{half_life}.safetensors"]
    dry = cli("average", "ckpts", *SEVERAL, *pattern, "--dry-run", "--json").json
    assert not (tmp_path / "sweep").exists()
    done = cli("average", "ckpts", *SEVERAL, *pattern, "--json").json
    paths = [f"sweep/x-{each}.safetensors" for each in ("50ba", "200ba", "infba")]
    for told, key in ((dry["would_write"], "would_write"), (done["written"], "written")):
        assert (told["path"], [each["path"] for each in told["outputs"]]) == ("sweep", paths), key
    assert [each["half_life"] for each in done["plans"]] == ["50ba", "200ba", "infba"]
    assert done["plans"] == dry["plans"] == cli("inspect", "ckpts", *SEVERAL, "--json").json["plans"]
    assert dry["would_write"]["bytes_to_read"] == done["written"]["bytes_read"] == 208
    sizes = [each["bytes"] for each in done["written"]["outputs"]]
    assert sizes == [(tmp_path / path).stat().st_size for path in paths]
    assert sum(sizes) == done["written"]["bytes_written"] == dry["would_write"]["bytes_to_write"]
    assert cli("inspect", "ckpts", "--json").json["plans"] == []


def test_a_default_name_that_is_too_long_says_so(cli: Cli, run: Path):
    """Too many half-lives for one name: an error with the way out."""
    many = [word for number in range(1, 60) for word in ("--half-life", f"{number}00ba")]
    done = cli("average", "ckpts", *many)
    assert done.code == 5
    assert "cannot be looked at: File name too long\nhint:  write elsewhere with -o" in done.err
    assert cli("average", "ckpts", *many, "-o", "many").code == 0


@pytest.mark.parametrize("options", [["--threads", "1"], ["--threads", "3"], ["--threads", "8"]], ids=" ".join)
def test_neither_threads_nor_memory_show_in_the_output(cli: Cli, run: Path, tmp_path: Path, options: list[str]):
    """Few threads or many, little memory or much: the same bytes."""
    cli("average", "ckpts", *SEVERAL, "-o", "plain")
    tight = cli("average", "ckpts", *SEVERAL, *options, "--max-memory", "5MB", "-o", "no")
    assert tight.code == 2
    needed = re.search(r"error: --max-memory: 5 MB are too few; this average needs (\d+) MB\nhint:", tight.err)
    assert needed
    assert not (tmp_path / "no").exists()
    little = f"{int(needed[1]) + 20}MB"  # this process grows meanwhile
    for number, memory in enumerate(([], ["--max-memory", little], ["--max-memory", "2GiB"])):
        done = cli("average", "ckpts", *SEVERAL, *options, *memory, "-o", f"{number}", "--json")
        assert done.code == 0, done
        for path in (tmp_path / "plain").iterdir():
            assert (tmp_path / f"{number}" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_process_stays_within_its_memory(program: Cli, tmp_path: Path):
    """Of large tensors in many threads, read for several averages, no more is in memory than was allowed."""
    (tmp_path / "ckpts").mkdir()
    for step in range(1, 5):
        values = torch.full((16 << 20,), step / 3)
        save_file({"weight": values}, tmp_path / "ckpts" / f"step-{step}.safetensors")
    laws = ["--half-life", "1ba", "--half-life", "2ba", "--half-life", "0ba"]
    for allowed in (85, 100, 150):
        done = program(
            "average", "ckpts", *laws, "--threads", "8", "--max-memory", f"{allowed}MB", "-o", "x", "-f", "--json"
        )
        assert done.code == 0, done
        assert done.json["written"]["peak_memory_bytes"] < allowed * 10**6


EIGHT = [word for each in ("0ba", "50ba", "100ba", "200ba", "500ba", "1000ba", "10000ba", "infba")
         for word in ("--half-life", each)]  # fmt: skip


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_eight_half_lives_are_readable_at_every_width(cli: Cli, run: Path, columns: str):
    """Each has a column with every weight, in as many tables as the width asks for; bars where there is room."""
    done = cli("inspect", "ckpts", *EIGHT, env={"COLUMNS": columns})
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.startswith(("checkpoint ", "step-"))]
    assert max(map(len, rows)) <= int(columns)
    assert len(rows) % 4 == 0
    assert [word for row in rows[::4] for word in row.split()[2:]] == EIGHT[1::2]
    percents = [word for row in rows for word in row.split() if word.endswith("%")]
    assert len(percents) == 3 * 8
    assert ("\u2588" in done.out) == (columns == "200")
    assert (len(rows) == 4) == (int(columns) >= 80)


def test_a_few_half_lives_are_drawn(cli: Cli, run: Path):
    """In the usual width there is a bar for each of three; what is skipped says why in the last column."""
    done = cli("inspect", "ckpts", *SEVERAL, env={"COLUMNS": "80"})
    row = next(line for line in done.out.splitlines() if line.startswith("step-100.pt"))
    assert row.split() == ["step-100.pt", "100", "6.2%", "\u258c", "50.0%", "\u2588" * 4, "100.0%", "\u2588" * 8]
    dry = cli("average", "ckpts", *SEVERAL, "--start", "200ba", "--dry-run", env={"COLUMNS": "80"})
    row = next(line for line in dry.out.splitlines() if line.startswith("step-100.pt"))
    assert row.split() == ["step-100.pt", "-", "-", "-", "before", "--start", "200ba"]
    assert "Would write ema-50ba-200ba-infba (3 averages): reading 144 B" in dry.out


def test_inspect_shows_the_run(cli: Cli, tmp_path: Path):
    """Each checkpoint with clocks and their source, size and dtypes; what is odd; weights with a half-life."""
    write_hf_run(tmp_path / "run", [100, 200, 400])
    done = cli("inspect", "run", "--half-life", "200ba")
    assert done.code == 0
    assert "run: 3 checkpoints of transformers" in done.out
    assert "3 tensors (2 floating, 1 integer), 17 parameters, 72 B" in done.out
    row = next(line.split() for line in done.out.splitlines() if line.startswith("checkpoint-400"))
    assert row[:4] == ["checkpoint-400", "400", "4", "50.00%"]
    assert row[4] == "\u2588" * 24
    assert "Every checkpoint: clock from sidecar, safetensors, 72 B, F32 I64" in done.out
    assert "gap of 200ba between checkpoint-200 and checkpoint-400" in done.out
    assert "2.5 effective" in done.out


def test_inspect_of_this_folder_in_json(cli: Cli, tmp_path: Path):
    """Without a path it is the folder one stands in; JSON carries all of it."""
    write_hf_run(tmp_path / "run", [100, 200, 400])
    told = cli("inspect", "--half-life", "200ba", "--json", cwd=tmp_path / "run").json
    assert told["run"]["spacing"] == {
        "usual": "100ba",
        "regular": False,
        "gaps": [{"after": "checkpoint-200", "before": "checkpoint-400", "length": "200ba"}],
    }
    first = told["run"]["checkpoints"][0]
    assert first["clocks"] == {"ba": {"value": 100, "from": "sidecar"}, "ep": {"value": 1, "from": "sidecar"}}
    assert first["dtypes"] == {"F32": 2, "I64": 1}
    assert told["plans"][0]["effective_checkpoints"] == pytest.approx(1 / (0.3536**2 + 0.1464**2 + 0.5**2), rel=1e-3)


def test_inspect_of_one_file_shows_how_it_was_averaged(cli: Cli, run: Path):
    """Tensors, and the law, checkpoints and weights of what ema-cli made."""
    cli("average", "ckpts", "--half-life", "100ba", "-o", "release.safetensors")
    done = cli("inspect", "release.safetensors")
    assert "Averaged by ema-cli" in done.out
    assert "half-life 100ba" in done.out
    assert "step-200.pt" in done.out
    assert ["layer.weight", "F32", "[4,", "3]", "48", "B"] in [line.split() for line in done.out.splitlines()]
    assert cli("inspect", "release.safetensors", "--json").json["recipe"]["half_life"] == "100ba"


def test_composer_s_own_run(cli: Cli, tmp_path: Path):
    """The checkpoints Composer wrote average to what its own EMA held."""
    folder = COMPOSER / "every-batch"
    done = cli("average", folder, "--half-life", "8ba", "--update-interval", "4ba", "-o", "x.safetensors")
    assert done.code == 0
    expected = load_file(COMPOSER / "expected" / "8ba-4ba.safetensors")
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


USAGE = [
    (["average", "ckpts"], "one of --half-life, --smoothing and --profile is needed"),
    (["average", "--half-life", "50ba"], "which checkpoints?"),
    (["average", "none", "--half-life", "50ba"], "none: does not exist"),
    (["average", "ckpts", "--half-life", "50"], "--half-life: '50' is not a time"),
    (["average", "ckpts", "--half-life", "-5ba"], "--half-life: '-5ba' is not a time"),
    (["average", "ckpts", "--half-life", "nanba"], "--half-life: 'nanba' is not a time"),
    (["average", "ckpts", "--half-life", "1e99ba"], "--half-life: '1e99ba' is out of range"),
    (["average", "ckpts", "--half-life", "5min"], "--half-life: '5min' is not a time"),
    (
        ["average", "ckpts", "--half-life", "5ba", "--smoothing", "0.5"],
        "only one of --half-life, --smoothing and --profile",
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
        "only one of --half-life, --smoothing and --profile",
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
    (["inspect", "ckpts", "--last", "3"], "which law?"),
    (["average", "ckpts", "--no-such-option"], "No such option: --no-such-option"),
    (["no-such-command"], "No such command 'no-such-command'"),
]


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
    (spoil_nothing, ["ckpts", "--spacing", "5ba"], 4, "--spacing 5ba: all checkpoints record a clock in batches", None),
    (spoil_nothing, ["ckpts", "--weights", "ema"], 4, "ckpts/step-100.pt: holds no averages", None),
    (spoil_nothing, ["ckpts", "--key", "other"], 3, "ckpts/step-100.pt: has no tensors under --key other", None),
    (spoil_output, ["ckpts"], 5, "ema-200ba.safetensors: exists already", b"mine".decode()),
    (spoil_nothing, ["ckpts", "-o", "no/x.safetensors"], 5, "no/x.safetensors: the folder", None),
    (spoil_nan, ["ckpts"], 6, "ckpts/step-200.pt: 'layer.bias' is not finite at element 0", None),
    (spoil_nothing, [str(COMPOSER / "ema-was-on")], 4, "is averaged already: Composer's EMA was on", None),
]


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
    """In a search the half-written one is left out and named; the rest is averaged."""
    spoil_truncate(run)
    done = cli("average", "ckpts", "--half-life", "200ba")
    assert done.code == 0
    assert "warning: step-200.pt is passed over: half-written: cut short" in done.err
    saved = [make_tensors(100), make_tensors(300)]
    torch.testing.assert_close(load_file(tmp_path / "ema-200ba.safetensors"), oracle(saved, [0.5, 0.5]))


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


def test_a_closed_pipe_is_no_traceback(run: Path, tmp_path: Path):
    """`ema-cli inspect | head -1` ends quietly."""
    command = f"{sys.executable} -m ema_cli inspect ckpts --half-life 20ba | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_no_arguments_show_the_help(cli: Cli):
    """Without arguments: the help, and the code for usage."""
    done = cli()
    assert done.code == 2
    assert "Usage: ema-cli" in done.out


SLOW_RUN = """
import sys, time
from pathlib import Path
from ema_cli.cli import app
from ema_cli.folding import buffers, fold
real = fold.run_block
def slow(*arguments):
    yield from real(*arguments)
    Path("started").touch()
    time.sleep(0.05)
fold.run_block = slow
buffers.divide_memory = lambda *_, **__: buffers.BufferSizes(threads=2, most_workers=2, rows=2, row_bytes=64)
sys.argv[1:] = ["average", "ckpts", "--half-life", "200ba", "--threads", "2", "-f", "-o", "x.safetensors"]
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_old_output_and_no_litter(run: Path, tmp_path: Path, number: int, code: int):
    """Ctrl-C or a kill in the middle: the old output as it was, nothing else, and the signal's code."""
    (tmp_path / "x.safetensors").write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err
    (tmp_path / "started").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpts", "x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"old"


@pytest.mark.slow
def test_after_a_kill_the_next_run_cleans_up(cli: Cli, run: Path, tmp_path: Path):
    """SIGKILL leaves a hidden folder; the next average beside it removes it and succeeds."""
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN], cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            assert process.poll() is None
        process.kill()
    assert any(path.name.startswith(".ema-cli-") for path in tmp_path.iterdir())
    assert cli("average", "ckpts", "--half-life", "200ba", "-o", "x.safetensors").code == 0
    assert not any(path.name.startswith(".ema-cli-") for path in tmp_path.iterdir())

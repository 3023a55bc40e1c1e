"""`ema-cli average` and `inspect` as their users meet them: outputs, plans, JSON."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.folding.kernel.choice import chosen_kernel
from tests.conftest import COMPOSER, Cli, write_hf_run, write_torch_run


def test_average_prints_where_and_nothing_else_on_stdout(cli: Cli, run: Path):
    """The path is the result; what people want to know goes to stderr, and -q silences it."""
    done = cli("average", "ckpts", "--half-life", "200ba")
    assert (done.code, done.out) == (0, "ema-200ba.safetensors\n")
    assert "3 checkpoints averaged: 2.6 effective, mean age 120.7ba" in done.err
    assert "2 tensors averaged, 1 copied; read 200 B in " in done.err
    assert re.search(r" s \([\d.]+ k?B/s\), wrote \d+ B, peak memory [\d.]+ [MG]B$", done.err.strip())
    quiet = cli("average", "ckpts", "--half-life", "200ba", "-f", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "ema-200ba.safetensors\n", "")


def test_average_of_named_files_in_any_order(cli: Cli, run: Path, tmp_path: Path):
    """Order on the command line does not matter; the clocks do."""
    cli("average", "ckpts", "--half-life", "200ba", "-o", "a.safetensors")
    files = [f"ckpts/step-{step}.pt" for step in (300, 100, 200)]
    assert cli("average", *files, "--half-life", "200ba", "-o", "b.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.slow
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
    assert written["kernel"] == str(chosen_kernel())


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


@pytest.mark.slow
def test_a_default_name_that_is_too_long_says_so(cli: Cli, run: Path):
    """Too many half-lives for one name: an error with the way out."""
    many = [word for number in range(1, 60) for word in ("--half-life", f"{number}00ba")]
    done = cli("average", "ckpts", *many)
    assert done.code == 5
    assert "cannot be looked at: File name too long\nhint:  write elsewhere with -o" in done.err
    assert cli("average", "ckpts", *many, "-o", "many").code == 0


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_dry_run_fails_where_an_average_would(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
):
    """A folder that this process may not write into is exit 5 before anything is read, in a dry run, too."""
    write_torch_run(tmp_path / "run", [1, 2])
    (tmp_path / "kept").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "kept" and access(path, mode))
    done = cli("average", "run", "--half-life", "1ba", "-o", "kept/out.safetensors", *flags)
    assert (done.code, "kept: may not be written into" in done.err) == (5, True), done
    assert cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors", *flags).code == 0

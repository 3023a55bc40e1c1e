"""ema-cli tune: an evaluation that knows the answer, failures, an interruption, little room."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ema_cli.manifest.manifest import read_manifest
from ema_cli.storage.local_place import LocalPlace
from ema_cli.tuning.journal import alone
from tests.conftest import Cli, write_hf_run, write_torch_run
from tests.formats.adapters.adapters import write_run
from tests.runs.stored_run import train
from tests.tuning.evaluations import calls, python

STEPS = range(100, 2001, 100)
HALVES = ("--half-life", "200ba", "--half-life", "400ba")
# A valley in the logarithm of the half-life, and the last checkpoint far above it. It counts its calls.
VALLEY = """
import math, os
name = os.environ['EMA_HALF_LIFE']
open('calls', 'a').write(name + chr(10))
print('loss', 9.0 if name == 'last' else math.log(float(name[:-2]) / {best}) ** 2)
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of twenty checkpoints."""
    write_torch_run(tmp_path / "ckpts", STEPS)
    return tmp_path


def test_it_writes_the_best_average_and_prints_where(cli: Cli, run_folder: Path):
    """Results on stderr as they come and as a table, the path alone on stdout; the log and the journal stay."""
    command = [
        "tune",
        "ckpts",
        "--half-life",
        "200ba",
        "--half-life",
        "400ba",
        "--eval",
        python(VALLEY.format(best=390)),
    ]
    done = cli(*command, "-o", "best")
    assert done.code == 0, done
    assert done.out == "best\n"
    assert re.search(r"400ba +0\.00064", done.err)
    assert "best: 400ba with 0.00064" in done.err
    assert "the last checkpoint has 9" in done.err
    assert cli("verify", "best", "--against", "ckpts").code == 0
    assert "how the half-life was chosen" in cli("verify", "best").out
    assert (run_folder / "best.tune" / "400ba.out").read_text().startswith("loss 0.00064")
    cli("average", "ckpts", "--half-life", "400ba", "-o", "alone")
    alone, best = ((run_folder / name / "model.safetensors").read_bytes() for name in ("alone", "best"))
    assert alone == best


def test_a_range_is_searched_around_the_best(cli: Cli, run_folder: Path):
    """The key of a JSON object, as a number; at most as many evaluations as said, and the last checkpoint."""
    code = (
        VALLEY.format(best=333)
        .replace("print('loss', ", "import json; print(json.dumps({'eval_loss': ")
        .replace("** 2)", "** 2}))")
    )
    done = cli(
        "tune", "ckpts", "--between", "50ba", "5000ba", "--tries", "8", "--eval", python(code), "--metric", "eval_loss",
        "-o", "best.safetensors", "--json",
    )  # fmt: skip
    assert done.code == 0, done
    assert len(calls(run_folder)) <= 9
    facts = done.json
    assert float(facts["best"][:-2]) == pytest.approx(333, rel=0.05)
    assert facts["written"] == {"path": "best.safetensors"}
    assert facts["candidates"][0]["name"] == "last"


def test_a_second_tuning_of_one_output_is_refused(cli: Cli, run_folder: Path):
    """Both would write into one journal; nothing is evaluated, and the first goes on."""
    with alone(run_folder / "best.tune"):
        done = cli("tune", "ckpts", "--half-life", "500ba", "--eval", python(VALLEY.format(best=333)), "-o", "best")
    assert done.code == 5
    assert "best.tune: is in use: another tuning writes its results here" in done.err
    assert not (run_folder / "calls").exists()


def test_resumed_equals_uninterrupted(cli: Cli, run_folder: Path):
    """What the journal knows is not evaluated again; the bytes are the same."""
    command = [
        "tune",
        "ckpts",
        "--between",
        "50ba",
        "5000ba",
        "--tries",
        "7",
        "--eval",
        python(VALLEY.format(best=333)),
    ]
    assert cli(*command, "-o", "whole").code == 0
    every = calls(run_folder)
    (run_folder / "calls").unlink()
    journal = (run_folder / "whole.tune" / "tune.jsonl").read_bytes().splitlines(keepends=True)
    (run_folder / "part.tune").mkdir()
    (run_folder / "part.tune" / "tune.jsonl").write_bytes(b"".join(journal[:4]) + b'{"na')
    assert cli(*command, "-o", "part").code == 0
    assert calls(run_folder) == every[3:]
    for file in ("model.safetensors", "ema-manifest.json", "SHA256SUMS"):
        assert (run_folder / "part" / file).read_bytes() == (run_folder / "whole" / file).read_bytes()
    assert cli(*command, "-o", "whole", "--force").code == 0
    assert calls(run_folder) == every[3:]


def test_the_results_of_another_evaluation_are_not_taken(cli: Cli, run_folder: Path):
    """The error says what is different, and what to do."""
    arguments = ["tune", "ckpts", "--half-life", "200ba", "-o", "best"]
    assert cli(*arguments, "--eval", python(VALLEY.format(best=100))).code == 0
    done = cli(*arguments, "--eval", python(VALLEY.format(best=200)), "--force")
    assert done.code == 5
    assert "of another tuning: other command" in done.err
    assert "remove best.tune" in done.err


@pytest.mark.parametrize("options", [["--shell"], ["--spacing", "7ba", "--ignore-clocks"], ["--keep-prefix"]])
def test_results_are_not_taken_where_the_same_command_means_something_else(
    options: list[str], cli: Cli, run_folder: Path
):
    """A shell expands it; other clocks make other averages of the same half-life; and so do other weights."""
    arguments = ["tune", "ckpts", "--half-life", "200ba", "-o", "best", "--force", "--eval", "echo 1"]
    assert cli(*arguments).code == 0
    done = cli(*arguments, *options)
    assert done.code == 5
    assert "of another tuning: other" in done.err


def test_results_that_stood_for_another_are_taken_without_it(cli: Cli, run_folder: Path):
    """Two windows that hold the same checkpoints; then only the second of them is asked for."""
    arguments = ["tune", "ckpts", "--profile", "uniform", "-o", "best", "--force", "--eval", "echo 1"]
    assert cli(*arguments, "--window", "250ba", "--window", "260ba").code == 0
    done = cli(*arguments, "--window", "260ba", "--json")
    assert done.code == 0, done
    assert [(row["name"], row["same_as"]) for row in done.json["candidates"]] == [
        ("last", None),
        ("uniform-260ba", None),
    ]
    assert (run_folder / "best.tune" / "tune.jsonl").read_bytes().count(b"\n") == 4


def test_an_average_that_is_the_last_checkpoint_is_not_evaluated(cli: Cli, run_folder: Path):
    """A half-life far below the spacing: under its own name it would pass the bar."""
    done = cli("tune", "ckpts", "--half-life", "1ba", "-o", "best", "--eval", python(VALLEY.format(best=1)))
    assert done.code == 6
    assert "the last checkpoint is the best" in done.err
    assert calls(run_folder) == ["last"]


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        ("import sys; sys.exit('bad model')", [], "exit code 1: bad model"),
        ("print('finished')", [], "no number: 'finished'"),
        ("print('nan')", [], "its metric is nan"),
        ("import os; os.kill(os.getpid(), 15)", [], "ended by SIGTERM"),
        ("import time; time.sleep(60)", ["--timeout", "0.2"], "longer than 0.2 s"),
        ("pass", [], "printed nothing"),
    ],
)
def test_where_every_candidate_fails_nothing_is_written(
    code: str, options: list[str], words: str, cli: Cli, run_folder: Path
):
    """Exit 6, with the reason of the first."""
    done = cli("tune", "ckpts", "--half-life", "200ba", "--eval", python(code), "-o", "best", *options)
    assert done.code == 6, done
    assert "no candidate has a metric" in done.err
    assert words in done.err
    assert {path.name for path in run_folder.iterdir()} <= {"ckpts", "best.tune", "calls"}


def test_a_command_without_a_path_is_told_so_and_mended_it_runs(cli: Cli, run_folder: Path):
    """What failed altogether keeps nothing, so the mended command needs no other output."""
    code = "import sys; print(len(sys.argv[1]))"
    line = ("tune", "ckpts", "--half-life", "200ba", "-o", "best", "--allow-last", "--eval")
    slip = cli(*line, python(code).removesuffix(" {path}"))
    assert slip.code == 6, slip
    assert "\nhint:  the command has no {path}, in the place of which the path of a model would come; try" in slip.err
    mended = cli(*line, python(code))
    assert mended.code == 0, mended


def test_a_candidate_that_fails_does_not_stop_the_others(cli: Cli, run_folder: Path):
    """It is in the table with its reason, and in the manifest."""
    code = (
        "import os, sys; name = os.environ['EMA_HALF_LIFE']; sys.exit('odd') if name == '200ba' else print(len(name))"
    )
    done = cli("tune", "ckpts", "--half-life", "200ba", "--half-life", "50ba", "--eval", python(code), "-o", "best")
    assert done.code == 0, done
    assert "200ba  " in done.err
    assert "failed: it ended with exit code 1: odd" in done.err


def test_averages_that_are_the_last_checkpoint_are_told_as_that(cli: Cli, run_folder: Path):
    """Nothing is wrong with an evaluation that ran once; where two differ in their weights alone, it is asked."""
    code = python("print(3)")
    arguments = ["tune", "ckpts", "--half-life", "1ba", "--half-life", "2ba", "--eval", code, "-o", "best"]
    done = cli(*arguments)
    assert done.code == 6
    assert "its metric is 3, all averages are the same weights; nothing was written" in done.err
    allowed = cli(*arguments, "--allow-last")
    assert (allowed.code, "does the command look at {path}?" in allowed.err) == (0, False), allowed
    doubted = cli("tune", "ckpts", "--half-life", "200ba", "--eval", code, "-o", "other")
    assert (doubted.code, "does the command look at {path}?" in doubted.err) == (0, True), doubted


def test_the_last_checkpoint_is_written_only_where_it_is_allowed(cli: Cli, run_folder: Path):
    """Else it is exit 6, and the hint works."""
    code = "import os; print(0 if os.environ['EMA_HALF_LIFE'] == 'last' else 1)"
    arguments = ["tune", "ckpts", "--half-life", "200ba", "--eval", python(code), "-o", "best"]
    done = cli(*arguments)
    assert done.code == 6
    assert "the last checkpoint is the best" in done.err
    assert "--allow-last" in done.err
    assert not (run_folder / "best").exists()
    assert cli(*arguments, "--allow-last").code == 0
    assert (run_folder / "best" / "model.safetensors").exists()


def test_candidates_load_as_the_output_does_and_few_lie_there_at_once(cli: Cli, tmp_path: Path):
    """A folder of the Trainer's, config and all; with --keep 2 there are never more than two, and the best is kept."""
    write_hf_run(tmp_path / "run", STEPS)
    code = """
import os, pathlib, sys
path = pathlib.Path(sys.argv[1])
assert (path / 'config.json').exists() and (path / 'tokenizer.json').exists()
assert len(list(path.parent.parent.parent.rglob('model.safetensors'))) <= 2
name = os.environ['EMA_HALF_LIFE']
print(99 if name == 'last' else abs(int(name[:-2]) - 300))
"""
    halves = [word for number in (100, 200, 300, 400, 500) for word in ("--half-life", f"{number}ba")]
    done = cli("tune", "run", *halves, "--eval", python(code), "-o", "best", "--keep", "2")
    assert done.code == 0, done
    assert "best: 300ba" in done.err
    assert cli("verify", "best", "--against", "run").code == 0


def test_several_at_once_give_the_same(cli: Cli, run_folder: Path):
    """Order does not show in the manifest."""
    command = [
        "tune",
        "ckpts",
        "--between",
        "50ba",
        "5000ba",
        "--tries",
        "6",
        "--eval",
        python(VALLEY.format(best=333)),
    ]
    assert cli(*command, "-o", "one").code == 0
    assert cli(*command, "-o", "several", "--jobs", "3").code == 0
    one, several = ((run_folder / name / "ema-manifest.json").read_bytes() for name in ("one", "several"))
    assert one == several


def test_where_there_is_little_room_few_lie_there_at_once(cli: Cli, run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Three fit on the disk; where not even one does, that is said before anything is evaluated."""
    code = """
import os, pathlib, sys
name, path = os.environ["EMA_HALF_LIFE"], pathlib.Path(sys.argv[1])
lying = len(list(path.parent.parent.parent.rglob("best.safetensors")))
assert lying <= 3, lying
open("calls", "a").write(f"{name}\\n")
print(99 if name == "last" else abs(int(name[:-2]) - 200))
"""
    halves = [word for number in (200, 300, 400, 500, 600) for word in ("--half-life", f"{number}ba")]
    command = ["tune", "ckpts", *halves, "--eval", python(code), "-o", "best.safetensors", "-f"]
    each = cli(*command, "--dry-run", "--json").json["would_evaluate"]["bytes_each"]

    def free_bytes(place: LocalPlace) -> int:
        lying = len(list(run_folder.glob(".ema-cli-*/candidates/*/*/best.safetensors")))
        return (room - lying) * each + each // 2

    monkeypatch.setattr(LocalPlace, "free_bytes", free_bytes)
    room = 3
    done = cli(*command, "--json")
    assert done.code == 0, done
    assert done.json["best"] == "200ba"
    assert len(calls(run_folder)) == len(set(calls(run_folder))) == 6
    assert cli("verify", "best.safetensors", "--against", "ckpts").code == 0
    room = 0
    done = cli(*command[:-3], "-o", "other.safetensors")
    assert (done.code, len(calls(run_folder))) == (5, 6)
    assert f"needs {each} bytes, but {each // 2} are free" in done.err


BUSY = """
import os, time
name = os.environ["EMA_HALF_LIFE"]
os.mkdir(f"busy-{name}")
time.sleep(0.2)
print(name, len([each for each in os.listdir() if each.startswith("busy-")]), file=open("calls", "a"))
os.rmdir(f"busy-{name}")
print(9 if name == "last" else 1)
"""


@pytest.mark.parametrize(("options", "most"), [((), 1), (("--jobs", "3"), 3), (("--devices", "0,1"), 2)])
def test_evaluations_run_where_the_user_is_and_as_many_at_once_as_said(
    options: tuple[str, ...], most: int, cli: Cli, run_folder: Path
):
    """In the working folder; one at a time, or --jobs, or one for each of the devices."""
    halves = [word for number in (200, 300, 400) for word in ("--half-life", f"{number}ba")]
    done = cli("tune", "ckpts", *halves, "--eval", python(BUSY), "-o", "best", *options)
    assert done.code == 0, done
    at_once = [int(line.split()[1]) for line in (run_folder / "calls").read_text().splitlines()]
    assert len(at_once) == 4
    assert max(at_once) == most


LAW = ("--start", "300ba", "--stop", "1800ba", "--last", "9", "--update-interval", "50ba", "--bias-correction")


def test_more_is_better_and_the_rest_of_the_law_is_the_same_for_all(cli: Cli, run_folder: Path):
    """The winner is what `average` makes with these options; the last checkpoint is that before the stop."""
    code = """
import os
name = os.environ["EMA_HALF_LIFE"]
print(0 if name == "last" else int(name[:-2]))
"""
    done = cli("tune", "ckpts", *HALVES, *LAW, "--maximize", "--eval", python(code), "-o", "best", "--json")
    assert (done.code, done.json["best"], done.json["maximize"]) == (0, "400ba", True), done
    assert cli("average", "ckpts", "--half-life", "400ba", *LAW, "-o", "alone").code == 0
    alone, best = (read_manifest(run_folder / name / "ema-manifest.json") for name in ("alone", "best"))
    del best["tune"]
    assert best == alone
    assert [row["name"] for row in best["inputs"] if row["weight"]] == [f"step-{n}.pt" for n in range(1000, 1801, 100)]


def test_what_average_says_of_run_and_winner_is_said_here_too(cli: Cli, run_folder: Path):
    """Of the run before anything is evaluated, of the winner behind the table; and in JSON."""
    (run_folder / "ckpts" / "step-150.pt").write_bytes(b"cut off")
    command = ["tune", "ckpts", "--skip-damaged", "--half-life", "50ba", "--eval", "echo 1", "-o", "best.pt", "-f"]
    done = cli(*command)
    assert done.code == 0, done
    lines = done.err.splitlines()
    skipped = next(number for number, line in enumerate(lines) if "step-150.pt" in line)
    heavy = next(number for number, line in enumerate(lines) if "step-2000.pt holds 75.0% of the average" in line)
    assert skipped < lines.index("last: 1") < heavy
    told = cli(*command, "--json").json
    assert any("step-150.pt" in warning for warning in told["warnings"])
    assert any("holds 75.0%" in warning for warning in told["plan"]["warnings"])
    assert any("step-150.pt" in warning for warning in cli(*command, "--dry-run", "--json").json["warnings"])
    assert "step-150.pt" in cli(*command, "--dry-run").err


def test_how_near_factors_come_to_the_average_of_products_is_said(cli: Cli, tmp_path: Path):
    """As `average --exact-lora` says it; the winner is what that writes."""
    (tmp_path / "lora").mkdir()
    write_run(tmp_path / "lora")
    law = ("--half-life", "1ba", "--exact-lora", "2")
    done = cli("tune", "lora", *law, "--eval", "echo 1", "-o", "best")
    assert done.code == 0, done
    alone = cli("average", "lora", *law, "-o", "alone")
    note = next(line for line in alone.err.splitlines() if line.startswith("note: A and B of rank 2"))
    assert note in done.err
    one, best = (read_manifest(tmp_path / name / "ema-manifest.json") for name in ("alone", "best"))
    del best["tune"]
    assert one == best
    assert cli("verify", "best", "--against", "lora").code == 0


def test_candidates_may_have_the_form_of_the_input(cli: Cli, run_folder: Path):
    """Each is the newest checkpoint over again; the best holds the bytes that `average` writes, under any suffix."""
    halves = ["--half-life", "200ba", "--half-life", "400ba", "--like-input"]
    done = cli("tune", "ckpts", *halves, "--eval", python(VALLEY.format(best=390)), "-o", "best.ckpt")
    assert done.code == 0, done
    (run_folder / "alone").mkdir()
    assert cli("average", "ckpts", "--half-life", "400ba", "--like-input", "-o", "alone/best.ckpt").code == 0
    assert (run_folder / "best.ckpt").read_bytes() == (run_folder / "alone" / "best.ckpt").read_bytes()
    done = cli("tune", "ckpts", *halves, "--eval", python(VALLEY.format(best=390)))
    assert (done.code, done.out) == (0, "ema-tuned.pt\n")


def test_averages_that_the_training_stored_can_be_tuned(cli: Cli, tmp_path: Path):
    """There may be no raw checkpoint to beat; the candidates are combinations of what is stored."""
    train(tmp_path / "run")
    done = cli(
        "tune", "run", "--from", "stored", "--half-life", "30ba", "--half-life", "60ba", "--eval",
        python("import os; print(os.environ['EMA_HALF_LIFE'][:2])"), "-o", "best",
    )  # fmt: skip
    assert done.code == 0, done
    assert "best: 30ba" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--half-life", "5ba"], "which evaluation?"),
        (["--eval", "true"], "which half-lives?"),
        (["--eval", "true", "--between", "5ba", "9ba", "--half-life", "5ba"], "excludes --half-life"),
        (["--eval", "true", "--half-life", "5ba", "--tries", "3"], "is for --between and --extrapolate"),
        (["--eval", "true", "--half-life", "5ba", "--repeats", "0"], "0 is too few"),
        (["--eval", "true", "--between", "9ba", "5ba"], "no range of half-lives"),
        (["--eval", "true", "--between", "5ba"], "requires 2"),
        (["--eval", "true", "--half-life", "5ba", "--devices", "0,,1"], "names no device"),
        (["--eval", "no-such-program-7", "--half-life", "5ba"], "no program"),
        (["--eval", "true", "--half-life", "5ba", "--timeout", "0"], "no number of seconds"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    options: list[str], words: str, cli: Cli, run_folder: Path
):
    """One error, exit 2, nothing written."""
    done = cli("tune", "ckpts", *options)
    assert done.code == 2, done
    assert words in done.err
    assert [path.name for path in run_folder.iterdir()] == ["ckpts"]


@pytest.mark.slow
def test_interrupted_it_leaves_no_candidate_and_no_evaluation(run_folder: Path):
    """Ctrl-C: the evaluation is ended, the candidates are gone, the journal stays for the next time."""
    code = "import os; print(os.getpid(), flush=True); import time; time.sleep(60)"
    arguments = ["tune", "ckpts", "--half-life", "200ba", "--eval", python(code), "-o", "best"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ema_cli", *arguments], cwd=run_folder, stderr=subprocess.PIPE, text=True
    )
    log = run_folder / "best.tune" / "last.out"
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    evaluation = int(log.read_text())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted, nothing written" in err
    with pytest.raises(ProcessLookupError):
        os.kill(evaluation, 0)
    assert {path.name for path in run_folder.iterdir()} == {"ckpts", "best.tune"}
    assert json.loads((run_folder / "best.tune" / "tune.jsonl").read_text())["tune"] == 1

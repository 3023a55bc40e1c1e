"""The user's command: no shell unless asked for, one log each, nothing left running."""

from __future__ import annotations

import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.time import Time
from ema_cli.tuning.command import Command
from ema_cli.tuning.metric import EvaluationFailed

PYTHON = f"{sys.executable} -ISc"


def command(code: str, tmp_path: Path, arguments: str = "", **options: Any) -> Command:
    """Return a command that runs some Python."""
    return Command(f"{PYTHON} {shlex.quote(code)} {arguments}", options.pop("metric", None), tmp_path, **options)


def is_alive(process: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_gets_the_path_as_a_word_and_in_the_environment(tmp_path: Path):
    """A path with a space is one word; the name of the candidate is beside it."""
    code = "import os, sys; print(sys.argv[1] == os.environ['EMA_PATH'], os.environ['EMA_HALF_LIFE'], 7)"
    evaluate = command(code, tmp_path, "{path}")
    assert evaluate(tmp_path / "a b", "50ba") == 7
    assert (tmp_path / "50ba.out").read_text() == "True 50ba 7\n"


@pytest.mark.parametrize("setting", ["half_life", "window", "extrapolate"])
def test_the_last_checkpoint_has_the_variables_of_the_others(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is chosen: an evaluation may ask for one variable alone. What is said of another is not passed on."""
    for name in ("HALF_LIFE", "WINDOW", "EXTRAPOLATE", "CLOCK"):
        monkeypatch.setenv(f"EMA_{name}", "of another")
    code = "import os; print(*sorted(f'{k}={v}' for k, v in os.environ.items() if k.startswith('EMA_')), 7)"
    evaluate = command(code, tmp_path, setting=setting)
    names = {"half_life": "50ba", "window": "linear-50ba", "extrapolate": "x0.5"}
    values = {"half_life": "50ba", "window": "50ba", "extrapolate": "0.5"}
    for name, value in ((names[setting], values[setting]), ("last", "last")):
        evaluate(tmp_path, name)
        told = (tmp_path / f"{name}.out").read_text().split()[:-1]
        assert set(told) == {f"EMA_PATH={tmp_path}", f"EMA_{setting.upper()}={value}"}
    evaluate = command(code, tmp_path, setting=setting, last_clock=Time.parse("900ba"))
    evaluate(tmp_path, "last")
    assert "EMA_CLOCK=900ba" in (tmp_path / "last.out").read_text().splitlines()[-1]
    evaluate(tmp_path, f"{names[setting]}-at-300ba")
    assert "EMA_CLOCK=300ba" in (tmp_path / f"{names[setting]}-at-300ba.out").read_text()


def test_nothing_is_expanded_without_a_shell_and_the_shell_gets_a_quoted_path(tmp_path: Path):
    """`$(...)` is a word; with a shell it is run, and a path cannot be."""
    place = tmp_path / "$(echo 5)"
    assert Command("echo {path} $(echo 3) 2", None, tmp_path)(place, "1ba") == 2
    assert "$(echo 3)" in (tmp_path / "1ba.out").read_text()
    assert Command("echo {path} $(echo 3)", None, tmp_path, shell=True)(place, "2ba") == 3
    assert "$(echo 5)" in (tmp_path / "2ba.out").read_text()


def test_a_second_evaluation_is_read_apart_from_the_first(tmp_path: Path):
    """The log holds both, the metric is that of this one."""
    evaluate = Command("cat {path}", None, tmp_path)
    (tmp_path / "one").write_text("1\n")
    (tmp_path / "two").write_text("no number\n")
    assert evaluate(tmp_path / "one", "50ba") == 1
    with pytest.raises(EvaluationFailed):
        evaluate(tmp_path / "two", "50ba")
    assert (tmp_path / "50ba.out").read_text() == "1\nno number\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print(1); sys.exit('no such model')", "exit code 1: no such model"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", "ended by signal 40"),
        ("print('x')", "no number"),
    ],
)
def test_a_command_that_fails_says_why_with_its_last_lines(code: str, words: str, tmp_path: Path):
    """A number that was printed before does not count."""
    with pytest.raises(EvaluationFailed, match=words):
        command(code, tmp_path)(tmp_path, "50ba")


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path):
    """The group of processes is ended."""
    code = "import os, time; pid = os.fork(); print(pid or os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(EvaluationFailed, match=r"longer than 0\.3 s"):
        command(code, tmp_path, timeout=0.3)(tmp_path, "50ba")
    children = {int(line) for line in (tmp_path / "50ba.out").read_text().split()}
    deadline = time.monotonic() + 5
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children
    assert not any(map(is_alive, children))


def test_devices_are_given_in_turn_and_one_at_a_time(tmp_path: Path):
    """Two evaluations at once never share one."""
    code = "import os, time; time.sleep(0.05); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    evaluate = command(code, tmp_path, devices=["3", "5"])
    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda number: evaluate(tmp_path, f"{number}ba"), range(4)))
    assert sorted(seen) == [3, 3, 5, 5]


def test_stopped_it_ends_what_runs_and_begins_nothing(tmp_path: Path):
    """An interrupted tuning leaves no evaluation behind."""
    evaluate = command("import time; print(1, flush=True); time.sleep(60)", tmp_path)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(evaluate, tmp_path, "50ba")
        log = tmp_path / "50ba.out"
        deadline = time.monotonic() + 10
        while not (log.exists() and log.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        evaluate.stop()
        assert isinstance(running.exception(10), EvaluationFailed)
    with pytest.raises(EvaluationFailed, match="not begun"):
        evaluate(tmp_path, "60ba")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no command"), ("'open", "cannot be split"), ("no-such-program-of-anybody x", "no program")],
)
def test_a_command_that_cannot_be_run_is_refused_before_anything(text: str, words: str, tmp_path: Path):
    """Not after the first reading of all checkpoints."""
    with pytest.raises(UsageError, match=words):
        Command(text, None, tmp_path)

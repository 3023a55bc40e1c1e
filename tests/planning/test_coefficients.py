"""Files of coefficients, and which checkpoints they are for."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from ema_cli.errors import RunError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.planning.coefficients import read_coefficients
from ema_cli.planning.plan import make_plan
from tests.composer_recurrence import make_run

ROWS = {"step-100": -0.5, "200ba": 1.25, "a,b": 0.25}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(
            [{"name": "step-100", "weight": -0.5}, {"clock": "200ba", "weight": 1.25}, {"name": "a,b", "weight": 0.25}]
        ),
        'name,weight\nstep-100,-0.5\n\n200ba, 1.25\n"a,b",.25\n',
        'step-100,-5e-1\r\n200ba,+1.25\r\n"a,b",0.25',
        '\ufeffclock,weight\nstep-100,-0.5\n200ba,1.25\n"a,b",0.25\n',
    ],
)
def test_json_and_csv_hold_the_same(tmp_path: Path, text: str):
    """An object, a list of objects, and lines, with a title or without."""
    path = tmp_path / "weights"
    path.write_text(text, "utf-8")
    assert read_coefficients(path) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name,weight\n", "holds no coefficient"),
        ("step-100\n", "line 1 has not a name or a clock, and a number"),
        ("name,clock,weight\nstep-100,1\n", "line 2 has not a name or a clock, and a number"),
        ("name,clock,weight\nstep-100,1ba,x\n", "line 2 has not"),
        ('[{"name": "a", "clock": 7, "weight": 1}]', "is no object of numbers"),
        ("step-100,1\nstep-200,nan\n", "line 2 has not"),
        ("step-100,1,2\n", "line 1 has not"),
        ("step-100,1\nstep-100,2\n", "'step-100' stands twice"),
        ("step-100,1e999\n", "inf, which is no coefficient"),
        ('"step-100,1\n', "unexpected end of data"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": "1"}', "is no object of numbers"),
        ('{"a": true}', "is no object of numbers"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e399}', "too large"),
        ('[["a", 1]]', "is no object of numbers"),
        ('[{"name": "a"}]', "is no object of numbers"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ("a,1\n" + "\n".join(f"{n},0" for n in range(100_000)), "100001 coefficients are too many"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str):
    """One line says what is wrong, and the hint what a file looks like."""
    path = tmp_path / "weights"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=f"coefficients=: .*{message}") as raised:
        Recipe(coefficients=read_coefficients(path), any_sum=True)
    assert raised.value.exit_code == 2


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path):
    """A FIFO would never end, a folder is none, and bytes are no text."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b" " * ((16 << 20) + 1))
    for name, message in (
        ("fifo", "is not a regular file"),
        (".", "is a folder"),
        ("none", "does not exist"),
        ("bytes", "is no text"),
        ("large", "are too many for this file"),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            read_coefficients(tmp_path / name)
        assert raised.value.option == "coefficients"


def test_names_and_clocks_are_those_of_the_run():
    """Only what is named enters, in the order of the run, with its weight."""
    run = make_run(*({"ba": clock} for clock in (0, 100, 200, 300)))
    plan = make_plan(run, Recipe(coefficients={"300ba": 0.5, "0ba": -0.25, run.checkpoints[2].name: 0.75}))
    assert [(str(entry.clock), entry.weight) for entry in plan.entries] == [
        ("0ba", -0.25),
        ("200ba", 0.75),
        ("300ba", 0.5),
    ]
    assert [skip.reason for skip in plan.skipped] == ["has no coefficient"]
    assert plan.advice.warnings == []


def test_a_clock_is_meant_as_it_is_shown():
    """A third of an epoch is 0.333333."""
    run = make_run(*({"ep": Fraction(third, 3)} for third in (1, 2, 3)))
    plan = make_plan(run, Recipe(coefficients={"0.333333ep": 0.5, "1ep": 0.5}))
    assert [entry.clock.value for entry in plan.entries] == [Fraction(1, 3), 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"150ba": 1}, "'150ba' is the name or the clock of no checkpoint"),
        ({"2ep": 1}, "'2ep' is the name or the clock of no checkpoint"),
        ({"nobody": 1}, "'nobody' is the name or the clock of no checkpoint"),
        ({"100ba": 0.5, "100steps": 0.5}, "has 100ba twice, once as '100steps'"),
        ({"200batches": 1}, "'200batches' is the name or the clock of each of"),
    ],
)
def test_what_is_not_one_checkpoint_is_an_error(given: dict[str, float], message: str):
    """Nothing is guessed."""
    run = make_run(*({"ba": clock} for clock in (100, 200, 200)))
    with pytest.raises(RunError, match=message):
        make_plan(run, Recipe(coefficients=given))

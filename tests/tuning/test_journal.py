"""The journal: what was evaluated is known after an interruption, and only for the same tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from ema_cli.errors import CheckpointError, OutputError
from ema_cli.tuning.journal import NAME, Journal
from ema_cli.tuning.results import Result

WHAT = {"tune": 1, "command": "eval", "repeats": 2}


def test_results_are_there_again_but_for_what_failed(tmp_path: Path):
    """A failure is tried again: its reason may be gone."""
    (tmp_path / "x.tune").mkdir()
    journal = Journal.open(tmp_path / "x.tune", WHAT)
    for result in (Result("1ba", (0.1, 0.3)), Result("2ba", failed="why"), Result("1ba", (0.2, 0.2))):
        journal.add(result)
    assert Journal.open(tmp_path / "x.tune", WHAT).results == {"1ba": Result("1ba", (0.2, 0.2))}


def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path):
    """What a power cut left half is written over, and what comes later can be read."""
    journal = Journal.open(tmp_path, WHAT)
    journal.add(Result("1ba", (0.1,)))
    with journal.path.open("ab") as file:
        file.write(b'{"name": "2ba", "val')
    again = Journal.open(tmp_path, WHAT)
    assert list(again.results) == ["1ba"]
    again.add(Result("3ba", (0.3,)))
    assert list(Journal.open(tmp_path, WHAT).results) == ["1ba", "3ba"]


def test_the_journal_of_another_tuning_is_an_error_that_names_the_difference(tmp_path: Path):
    """Metrics of another evaluation must not be mixed."""
    Journal.open(tmp_path, WHAT).add(Result("1ba", (0.1,)))
    with pytest.raises(OutputError, match="of another tuning: other command"):
        Journal.open(tmp_path, {**WHAT, "command": "other"})


def test_a_journal_without_a_metric_gives_way_to_another_tuning(tmp_path: Path):
    """After a command with a slip in it, the mended one needs no other place; what succeeds is kept from then on."""
    Journal.open(tmp_path, WHAT).add(Result("1ba", failed="it ended with exit code 1"))
    (tmp_path / NAME).write_bytes(b"")  # as a power cut leaves it
    Journal.open(tmp_path, WHAT).add(Result("1ba", failed="it ended with exit code 1"))
    mended = {**WHAT, "command": "mended"}
    anew = Journal.open(tmp_path, mended)
    assert anew.results == {}
    anew.add(Result("1ba", (0.1,)))
    assert list(Journal.open(tmp_path, mended).results) == ["1ba"]
    with pytest.raises(OutputError, match="of another tuning: other command"):
        Journal.open(tmp_path, WHAT)


FIRST = '{"tune": 1, "command": "eval", "repeats": 2}\n'


@pytest.mark.parametrize(
    "text",
    [
        "[1]\n",
        "no json\n",
        FIRST + "7\n",
        FIRST + '{"name": "1ba"}\n',
        FIRST + '{"name": "1ba", "values": 1}\n',
        FIRST + '{"name": "1ba", "values": ["x"]}\n',
        FIRST + '{"name": "1ba", "values": [NaN]}\n',
        FIRST + '{"name": "1ba", "values": [1' + 400 * "0" + "]}\n",
        FIRST + '{"name": ["1ba"], "values": [1]}\n',
    ],
)
def test_what_is_no_journal_is_an_error(text: str, tmp_path: Path):
    """It is not overwritten."""
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="no journal"):
        Journal.open(tmp_path, WHAT)
    assert (tmp_path / NAME).read_text() == text

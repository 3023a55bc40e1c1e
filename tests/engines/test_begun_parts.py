"""Parts of which some are made: every command that is given the place says which, and what is to be done."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Executor
from pathlib import Path

import pytest

from ema_cli import __version__, passes
from ema_cli.averaging import perform
from ema_cli.engines import digest
from ema_cli.engines.engine import Engine, EngineError
from ema_cli.engines.part import Part
from ema_cli.errors import CheckpointError, UsageError, VerificationError
from ema_cli.planning.plan import Plan
from ema_cli.release.published import find_averages
from ema_cli.result import PartDone
from ema_cli.runs.run import open_run
from ema_cli.storage.names import StorePath
from tests.conftest import Cli
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS
from tests.engines.test_equal_bytes import plans
from tests.engines.test_parts import make
from tests.engines.test_stores import bucket, prepared, put_run

__all__ = ["bucket"]  # a fixture
pytestmark = pytest.mark.usefixtures("small_tasks", "small_blocks")


def part_of(made: list[Plan], place: Path, part: Part) -> PartDone:
    """Make a part; return what became of it."""
    done = make(made, place, part).part
    assert done is not None
    return done


def test_which_part_is_missing(tmp_path: Path, cli: Cli):
    """Every command says so; `verify` with the exit code of an average that does not hold."""
    made = plans(RUNS["transformers"](tmp_path / "run"), "200ba")
    for number in (0, 2):
        assert part_of(made, tmp_path / "x", Part(number, 3)).others == ()
    error = "error: x: is not there yet, but in the making: of 3 parts, 0, 2 are made, 1 is missing\nhint:  "
    for command, code in ((("verify",), 6), (("inspect",), 2), (("report",), 2)):
        said = cli(*command, "x")
        assert (said.code, said.out) == (code, "")
        assert said.err == f"{error}run 1 of 3 as the others were run: ema-cli average --part 1/3\n"
    said = cli("average", "x", "--last", "1", "-o", "y")
    assert (said.code, said.err) == (2, f"{error}run 1 of 3 as the others were run: --part 1/3\n")
    assert part_of(made, tmp_path / "x", Part(1, 3)).published
    assert cli("verify", "x").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_holds_nothing_else(tmp_path: Path, cli: Cli):
    """It is said of it, too, what is in the making there; so it is not where something else lies beside that."""
    made = plans(RUNS["transformers"](tmp_path / "run"), "200ba")
    (tmp_path / "around").mkdir()
    make(made, tmp_path / "around" / "x", Part(0, 2))
    begun = "x is not there yet, but in the making: of 2 parts, 0 is made, 1 is missing"
    assert f"error: around: holds no average: {begun}\nhint:  run 1 of 2" in cli("verify", "around").err
    assert f"error: around: no checkpoint in this folder: {begun}\nhint:  run 1 of 2" in cli("inspect", "around").err
    (tmp_path / "around" / "notes.txt").write_text("mine")
    assert "in the making" not in cli("verify", "around").err
    assert "in the making" not in cli("inspect", "around").err


def test_a_part_that_ended_early_is_named(tmp_path: Path):
    """It told of itself before it read a tensor."""
    run = RUNS["transformers"](tmp_path / "transformers")
    made = plans(run, "200ba")
    part_of(made, tmp_path / "x", Part(0, 2))
    shard = run / "checkpoint-200" / "model-00002-of-00003.safetensors"
    shard.rename(shard.with_name("aside"))
    with pytest.raises(CheckpointError):
        make(made, tmp_path / "x", Part(1, 2))
    with pytest.raises(VerificationError, match=r"0 is made, 1 \(\d of \d tasks done\) is begun") as caught:
        find_averages([tmp_path / "x"])
    assert caught.value.hint == "run 1 of 2 as the others were run, what is begun unless it still runs: part='1/2'"


@pytest.mark.parametrize("kind", ["disk", "store"])
def test_what_workers_have_done_for_one_who_is_gone(tmp_path: Path, bucket: StorePath, executor: Executor, kind: str):
    """Where an engine's run ended early, the place says that the same command goes on."""
    made = put_run(bucket / "run", tmp_path)
    place = bucket / "out" if kind == "store" else tmp_path / "out"

    def lose(*_: object) -> None:
        raise BrokenExecutor

    engine = Engine("x", Wrapped(executor, lose, lambda task: task.number == 2))
    with pytest.raises(EngineError):
        perform(prepared(made, place, 600), by=engine)
    with pytest.raises(
        VerificationError, match=r"is not there yet, but in the making: workers have done \d tasks?$"
    ) as caught:
        find_averages([place])
    assert caught.value.hint == "run the same command again, unless it still runs: it goes on with that"
    perform(prepared(made, place, 600), by=Engine("x", executor))
    (found,) = find_averages([place])
    assert found.vouched


def test_in_a_store(tmp_path: Path, bucket: StorePath):
    """The same; and when all is published, nothing of it is left."""
    made = put_run(bucket / "run", tmp_path)
    perform(prepared(made, bucket / "out", 600), by=Part(0, 2))
    with pytest.raises(VerificationError, match="of 2 parts, 0 is made, 1 is missing"):
        find_averages([bucket / "out"])
    with pytest.raises(UsageError, match="of 2 parts, 0 is made, 1 is missing"):
        open_run(bucket / "out")
    perform(prepared(made, bucket / "around" / "x", 600), by=Part(0, 2))
    with pytest.raises(VerificationError, match="holds no average: x is not there yet"):
        find_averages([bucket / "around"])
    perform(prepared(made, bucket / "out", 600), by=Part(1, 2))
    (found,) = find_averages([bucket / "out"])
    assert found.vouched
    with pytest.raises(UsageError, match="does not exist"):
        find_averages([bucket / "other"])


def test_parts_that_make_no_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of other numbers, other weights, checkpoints that were replaced meanwhile, another numpy: each says so."""
    run = RUNS["transformers"](tmp_path / "transformers")
    made = plans(run, "200ba")
    assert part_of(made, tmp_path / "x", Part(2, 3)).others == ()
    others = part_of(made, tmp_path / "x", Part(3, 4)).others
    assert others == ("part 2 was begun as one of 3, this one of 4: all need one number",)
    assert "part 2 of 3 was begun with other weights: all parts need the same" in (
        part_of(plans(run, "100ba"), tmp_path / "x", Part(0, 3)).others
    )
    shard = run / "checkpoint-200" / "model-00001-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    replaced = plans(run, "200ba")
    assert "part 2 of 3 was begun with other checkpoints: all parts need the same" in (
        part_of(replaced, tmp_path / "x", Part(1, 3)).others
    )
    monkeypatch.setattr(digest, "versions", lambda: {"ema-cli": "0.0.9", "numpy": "0.1"})
    assert f"part 2 of 3 was begun with ema-cli {__version__}: all parts need the same" in (
        part_of(replaced, tmp_path / "x", Part(0, 2)).others
    )
    assert not (tmp_path / "x").exists()


def test_parts_that_have_not_the_same_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where they have other memory, or may open fewer files: their tasks are others, and each waited without a word."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "100ba", "200ba")
    assert part_of(made, tmp_path / "x", Part(0, 2)).others == ()
    monkeypatch.setattr(passes, "most_open_files", lambda: 1)
    assert part_of(made, tmp_path / "x", Part(1, 2)).others == (
        "part 0 of 2 was begun in 1 pass, by its memory or its open files: all parts need the same",
    )
    with pytest.raises(VerificationError, match="and 2 different averages are in the making") as caught:
        find_averages([tmp_path / "x"])
    assert "; in 2 passes, by its memory or its open files, of 2 parts, 1 is made" in caught.value.fact
    assert part_of(made, tmp_path / "x", Part(0, 2)).published


def test_a_part_warns_of_the_others(tmp_path: Path, cli: Cli):
    """In words, as text and as JSON, and ends well; there is one task, which neither makes."""
    RUNS["one file"](tmp_path / "run")
    command = ("average", "run", "--name-clock", "ba", "--half-life", "200ba", "-o", "x", "--part")
    assert "warning" not in cli(*command, "1/3").err
    warning = "part 1 was begun as one of 3, this one of 2: all need one number"
    assert f"warning: {warning}\n" in cli(*command, "1/2").err
    assert warning in cli(*command, "1/2", "--json").json["warnings"]
    assert "warning" not in cli(*command, "0/2").err, "all is published"

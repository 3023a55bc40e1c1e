"""Parts of an average, made by processes that know nothing of each other but a folder."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ema_cli.averaging import perform
from ema_cli.engines.engine import Engine
from ema_cli.engines.part import Part
from ema_cli.engines.parts import share_of
from ema_cli.engines.tasks import Step, Task
from ema_cli.errors import CheckpointError, OutputError
from ema_cli.planning.plan import Plan
from ema_cli.preparing import prepare
from ema_cli.result import PartDone, Result
from ema_cli.storage import local_place
from ema_cli.storage.lease import Lease
from ema_cli.storage.staging import shared as shared_staging
from ema_cli.writing.target import parse_target
from tests.conftest import Cli
from tests.engines.runs import RUNS, files_below
from tests.engines.test_equal_bytes import plans

pytestmark = pytest.mark.usefixtures("small_tasks", "small_blocks")


def make(made: list[Plan], place: Path, part: Part | None = None, *, manifest: bool = True) -> Result:
    job = prepare(made, parse_target(place), force=False, may_be_made=part is not None, manifest=manifest)
    return perform(job, by=part, threads=2)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_parts_in_any_order(tmp_path: Path, run: str, count: int):
    """The last one publishes what one process makes, the others nothing; nothing else is left."""
    made = plans(RUNS[run](tmp_path / run), "200ba")
    for folder in ("alone", "parts"):
        (tmp_path / folder).mkdir()
    make(made, tmp_path / "alone" / "x.safetensors")
    order = random.Random(count).sample(range(count), count)
    results = [make(made, tmp_path / "parts" / "x.safetensors", Part(number, count)) for number in order]
    assert files_below(tmp_path / "parts") == files_below(tmp_path / "alone")
    assert [result.part is not None and result.part.published for result in results].count(True) == 1


def test_a_part_that_died_is_made_again_alone(tmp_path: Path):
    """What the others made stays, also where a part ended with an error: only its own tasks are done then."""
    run = RUNS["transformers"](tmp_path / "transformers")
    made = plans(run, "200ba")
    make(made, tmp_path / "alone")
    make(made, tmp_path / "x", Part(0, 2))
    shard = run / "checkpoint-200" / "model-00002-of-00003.safetensors"
    shard.rename(shard.with_name("aside"))
    with pytest.raises(CheckpointError):
        make(made, tmp_path / "x", Part(1, 2))
    assert not (tmp_path / "x").exists()
    shard.with_name("aside").rename(shard)
    assert make(made, tmp_path / "x", Part(0, 2)).bytes_read == 0, "it is done"
    result = make(made, tmp_path / "x", Part(1, 2))
    assert result.part is not None
    assert result.part.published
    assert files_below(tmp_path / "x") == files_below(tmp_path / "alone")
    assert hidden(tmp_path) == []


def test_a_damaged_part_is_found_and_made_again(tmp_path: Path):
    """Whoever publishes reads every sum again: one byte that another part did not write is mended."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")
    (tmp_path / "out").mkdir()
    make(made, tmp_path / "out" / "x.safetensors", Part(0, 2))
    (staged,) = (tmp_path / "out").glob(".ema-cli-parts-*/x.safetensors")
    with staged.open("r+b") as file:
        file.seek(staged.stat().st_size - 3000)
        before = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([before[0] ^ 1]))
    make(made, tmp_path / "out" / "x.safetensors", Part(1, 2))
    (tmp_path / "alone").mkdir()
    make(made, tmp_path / "alone" / "x.safetensors")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"let_through": [[]]', '"let_through": [["w"]]'),
        lambda text: text.replace('"sums": [[', '"sums": [["", '),
        lambda text: text[:-9],
        lambda text: "[" * 100_000,
        lambda text: "",
    ],
)
def test_a_damaged_record_of_a_task_is_not_believed(tmp_path: Path, damage: Callable[[str], str]):
    """The task is done again, by whoever publishes: the manifest says what one process says."""
    made = plans(RUNS["transformers"](tmp_path / "transformers"), "200ba")
    make(made, tmp_path / "alone")
    make(made, tmp_path / "x", Part(0, 2))
    for record in tmp_path.glob(".ema-cli-parts-*/.tasks/*/*.json"):
        before = record.read_text()
        record.write_text(damage(before))
        assert record.read_text() != before
    make(made, tmp_path / "x", Part(1, 2))
    assert files_below(tmp_path / "x") == files_below(tmp_path / "alone")


def test_room_for_what_is_made_already_is_not_wanted_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the parts that come later, and by an engine that goes on; one process by itself goes on with nothing."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")
    target = parse_target(tmp_path / "x.safetensors")
    make(made, target.path, Part(0, 2))
    needed = prepare(made, target, force=False).bytes_on_disk
    monkeypatch.setattr(local_place.LocalPlace, "free_bytes", lambda place: needed - 1)
    with pytest.raises(OutputError, match=f"needs {needed} bytes, but {needed - 1} are free"):
        prepare(made, target, force=False)
    prepare(made, target, force=False, goes_on=True)
    with pytest.raises(OutputError, match="are free"):
        prepare(made, parse_target(tmp_path / "y.safetensors"), force=False, goes_on=True)
    part = Part(1, 2)
    assert perform(prepare(made, target, force=False, may_be_made=True, goes_on=True), by=part).part == PartDone(
        part, published=True, waiting=0
    )
    late = perform(prepare(made, target, force=False, may_be_made=True, goes_on=True), by=part)
    assert late.bytes_read == 0, "all is published"


def test_a_folder_that_somebody_else_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What lies in it would be published; nor is a link followed. Both stay as they are."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")
    make(made, tmp_path / "x", Part(0, 2))
    (shared,) = tmp_path.glob(".ema-cli-parts-*")
    elsewhere = shared.rename(tmp_path / "elsewhere")
    shared.symlink_to(elsewhere)
    before = files_below(elsewhere)
    with pytest.raises(OutputError, match="belongs to somebody else"):
        make(made, tmp_path / "x", Part(1, 2))
    shared.unlink()
    elsewhere.rename(shared)
    monkeypatch.setattr(shared_staging, "owner_of_files_in", lambda folder: os.getuid() + 1)
    with pytest.raises(OutputError, match="belongs to somebody else"):
        make(made, tmp_path / "x", Part(1, 2))
    assert files_below(shared) == before


def test_only_one_publishes(tmp_path: Path):
    """Where another part holds the claim on publishing, and lives, this one ends well without it."""
    made = plans(RUNS["transformers"](tmp_path / "transformers"), "200ba")
    make(made, tmp_path / "x", Part(0, 2))
    (tasks,) = tmp_path.glob(".ema-cli-parts-*/.tasks")
    with Lease(tasks / "publishing", seconds=1):
        result = make(made, tmp_path / "x", Part(1, 2))
    assert result.part is not None
    assert (result.part.published, result.part.waiting) == (False, 0)
    assert not (tmp_path / "x").exists()
    again = make(made, tmp_path / "x", Part(1, 2))
    assert again.part is not None
    assert again.part.published, "the other one died"


@pytest.mark.parametrize("manifest", [True, False])
def test_a_part_that_claims_the_publishing_after_another_has_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, manifest: bool
):
    """And removed the folder, which a third part has made anew: it ends well, and leaves what is published."""
    made = plans(RUNS["transformers"](tmp_path / "transformers"), "200ba")
    publishing = shared_staging.SharedStaging.publishing

    def late(staging: shared_staging.SharedStaging, **options: float) -> Lease:
        if not (tmp_path / "x").exists():
            shutil.copytree(staging.folder, tmp_path / "kept")
            make(made, tmp_path / "x", manifest=manifest)
            shutil.rmtree(staging.folder)
            (tmp_path / "kept").rename(staging.folder)
        return publishing(staging, **options)

    make(made, tmp_path / "x", Part(0, 2), manifest=manifest)
    monkeypatch.setattr(shared_staging.SharedStaging, "publishing", late)
    result = make(made, tmp_path / "x", Part(1, 2), manifest=manifest)
    assert result.part is not None
    assert (result.part.published, result.part.waiting) == (False, 0)
    assert hidden(tmp_path) == []


def test_a_part_that_comes_late(tmp_path: Path):
    """Where all is published already, a part ends well, and reads no tensor; another average is not written over.

    Nor is one without a manifest, which may be another. An empty folder stayed beside it.
    """
    run = RUNS["transformers"](tmp_path / "transformers")
    for number in (0, 1):
        make(plans(run, "200ba"), tmp_path / "x", Part(number, 2))
    before = files_below(tmp_path / "x")
    late = make(plans(run, "200ba"), tmp_path / "x", Part(0, 2))
    assert late.part is not None
    assert (late.part.published, late.part.waiting, late.bytes_read) == (False, 0, 0)
    with pytest.raises(OutputError, match="exists already"):
        make(plans(run, "100ba"), tmp_path / "x", Part(0, 2))
    assert files_below(tmp_path / "x") == before
    with pytest.raises(OutputError, match="exists already"):
        make(plans(run, "200ba"), tmp_path / "x", Part(0, 2), manifest=False)
    assert hidden(tmp_path) == []


def test_a_damaged_release_is_replaced_where_that_is_wanted(tmp_path: Path):
    """Its manifest alone does not make it whole: with `force` it is made anew. With a file less it is none."""
    made = plans(RUNS["transformers"](tmp_path / "transformers"), "200ba")
    make(made, tmp_path / "x", Part(0, 1))
    before = files_below(tmp_path / "x")
    shard = max((tmp_path / "x").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    job = prepare(made, parse_target(tmp_path / "x"), force=True, may_be_made=True)
    assert perform(job, by=Part(0, 1), threads=2).bytes_read
    assert files_below(tmp_path / "x") == before
    assert not perform(job, by=Part(0, 1), threads=2).bytes_read, "it is whole"
    shard.unlink()
    with pytest.raises(OutputError, match="exists already"):
        make(made, tmp_path / "x", Part(0, 1))


def test_a_part_beside_a_run_with_an_engine(tmp_path: Path):
    """The run has the claim on publishing all the time: the part makes its tasks, and leaves the rest to it."""
    made = plans(RUNS["transformers"](tmp_path / "transformers"), "200ba")
    make(made, tmp_path / "alone")
    parts: list[Result] = []

    def progress(done: int, total: int) -> None:
        if not parts:
            parts.append(make(made, tmp_path / "x", Part(0, 1)))

    job = prepare(made, parse_target(tmp_path / "x"), force=False)
    with ThreadPoolExecutor(1) as executor:
        perform(job, by=Engine("threads", executor), progress=progress)
    assert [result.part is not None and result.part.published for result in parts] == [False]
    assert files_below(tmp_path / "x") == files_below(tmp_path / "alone")
    assert hidden(tmp_path) == []


def test_a_folder_that_goes_while_a_part_is_made(tmp_path: Path):
    """By a run that gave up it is an error; by one that published, it is none."""
    made = plans(RUNS["transformers"](tmp_path / "transformers"), "200ba")
    make(made, tmp_path / "alone")
    for is_published in (True, False):

        def progress(done: int, total: int, is_published: bool = is_published) -> None:
            for folder in tmp_path.glob(".ema-cli-parts-*"):
                shutil.rmtree(folder)
            if is_published and not (tmp_path / "x").exists():
                make(made, tmp_path / "x")

        job = prepare(made, parse_target(tmp_path / "x"), force=False, may_be_made=True)
        if is_published:
            result = perform(job, by=Part(0, 2), progress=progress)
            assert result.part is not None
            assert not result.part.published
            assert files_below(tmp_path / "x") == files_below(tmp_path / "alone")
            assert hidden(tmp_path) == []
            shutil.rmtree(tmp_path / "x")
        else:
            with pytest.raises(OutputError, match="published nothing"):
                perform(job, by=Part(0, 2), progress=progress)


def test_another_recipe_goes_on_with_nothing(tmp_path: Path):
    """Parts of another average, with another half-life, are no parts of this one."""
    run = RUNS["transformers"](tmp_path / "transformers")
    make(plans(run, "200ba"), tmp_path / "x", Part(0, 2))
    make(plans(run, "100ba"), tmp_path / "x", Part(1, 2))
    assert not (tmp_path / "x").exists()
    assert len(hidden(tmp_path)) == 2


def test_tasks_are_shared_out_by_their_size():
    """Each task belongs to one part, and no part has more than another by more than a task."""
    tasks = [Task(number, Step.WHOLE, ((number,),), 100 + number % 7) for number in range(100)]
    parts = [share_of(tasks, Part(number, 8)) for number in range(8)]
    assert sorted(task.number for part in parts for task in part) == list(range(100))
    loads = [sum(task.nbytes for task in part) for part in parts]
    assert max(loads) - min(loads) <= 107


def test_the_command_line(tmp_path: Path, cli: Cli):
    """A part that does not publish prints no path, and says what is missing; the last one prints the path."""
    RUNS["transformers"](tmp_path / "run")
    arguments = ("average", "run", "--half-life", "200ba", "-o", "x")
    first = cli(*arguments, "--part", "0/2")
    assert (first.code, first.out) == (0, "")
    assert "part 0/2 made" in first.err
    last = cli(*arguments, "--part", "auto", "--json", env={"RANK": "1", "WORLD_SIZE": "2"})
    assert last.json["written"]["part"] == {"number": 1, "count": 2, "published": True, "waiting_for": 0}
    assert (tmp_path / "x").is_dir()
    alone = cli(*arguments, "--part", "auto", env={"JOB_COMPLETION_INDEX": "1"})
    assert (alone.code, "--part $JOB_COMPLETION_INDEX/8\n" in alone.err) == (2, True), "to be copied into a shell"
    both = cli(*arguments, "--part", "0/2", "--on", "processes=2")
    assert both.code == 2


def test_a_folder_that_does_not_exist_is_named_as_without_parts(tmp_path: Path):
    """It is missing, not closed to writers: and it can be made."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")
    for part in (None, Part(0, 2)):
        with pytest.raises(OutputError, match=r"the folder .* does not exist") as caught:
            make(made, tmp_path / "nowhere" / "x.safetensors", part)
        assert str(caught.value.hint).startswith("make it first: mkdir -p ")
